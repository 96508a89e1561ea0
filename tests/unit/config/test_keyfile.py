"""Key files: parsing, permissions, writing, and systemd credentials."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from esp_gw import files
from esp_gw.config import keyfile
from esp_gw.errors import KeyFileError
from esp_gw.model import SUITES, KeyMaterial

AES128 = SUITES["aes128gcm16"]
# Order of RFC 4106: sixteen bytes of key, then four of salt.
KEY_HEX = "000102030405060708090a0b0c0d0e0f"
SALT_HEX = "cafebabe"


def key_file(tmp_path: Path, content: bytes | str, mode: int = 0o600) -> Path:
    path = tmp_path / "site.key"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(KeyFileError) as caught:
        keyfile.read_key_file(path, AES128)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.where is not None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return text


@pytest.mark.parametrize(
    "content",
    [
        KEY_HEX + SALT_HEX,
        f"0x{KEY_HEX}{SALT_HEX}\n",
        f"0X{(KEY_HEX + SALT_HEX).upper()}\r\n",
        f"# Köln to Łódź\u0085\n\n  {KEY_HEX}{SALT_HEX}  # key, then salt\n",
    ],
)
def test_key_comes_first_and_salt_last(tmp_path: Path, content: str) -> None:
    (keymat,) = keyfile.read_key_file(key_file(tmp_path, content), AES128)
    assert keymat.key == bytes(range(16))
    assert keymat.salt == b"\xca\xfe\xba\xbe"


@pytest.mark.parametrize("name", sorted(SUITES))
def test_each_suite_takes_exactly_its_length(name: str) -> None:
    suite = SUITES[name]
    for length in range(suite.keymat_len + 5):
        text = "ab" * length
        if length == suite.keymat_len:
            assert keyfile.parse_keymat(text, suite).to_bytes() == b"\xab" * length
        else:
            with pytest.raises(KeyFileError):
                keyfile.parse_keymat(text, suite)


def test_a_wrong_length_is_reported_with_both_sizes_and_without_the_key(tmp_path: Path) -> None:
    text = refusal(key_file(tmp_path, KEY_HEX))
    assert "32 hex digits (16 bytes)" in text
    assert "40 (20 bytes" in text
    assert "salt is missing" in text
    assert KEY_HEX not in text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# nothing\n\n",
        f"{KEY_HEX}\n{SALT_HEX}\n".encode(),
        f"{KEY_HEX} {SALT_HEX}\n".encode(),
        f"{KEY_HEX}{SALT_HEX}0".encode(),
        f"{KEY_HEX}zz{SALT_HEX}"[:40].encode(),
        bytes.fromhex(KEY_HEX + SALT_HEX),
        b"\xff\xfe" + f"{KEY_HEX}{SALT_HEX}".encode("utf-16-le"),
        "\u0660".encode() * 40,
        b"0x",
    ],
)
def test_content_other_than_one_line_of_hex_is_refused_without_showing_it(
    tmp_path: Path, content: bytes
) -> None:
    text = refusal(key_file(tmp_path, content))
    assert str(tmp_path) in text
    assert KEY_HEX[:8] not in text
    assert SALT_HEX not in text


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666])
def test_a_file_open_to_others_is_refused_with_a_remedy(tmp_path: Path, mode: int) -> None:
    text = refusal(key_file(tmp_path, KEY_HEX + SALT_HEX, mode))
    assert f"{mode:04o}" in text
    assert "chmod 600" in text


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_is_accepted(tmp_path: Path, mode: int) -> None:
    keyfile.read_key_file(key_file(tmp_path, KEY_HEX + SALT_HEX, mode), AES128)


def status_of(uid: int, mode: int = 0o100600) -> os.stat_result:
    return os.stat_result((mode, 1, 1, 1, uid, 0, 40, 0, 0, 0))


def test_only_root_and_the_current_user_may_own_a_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files.os, "geteuid", lambda: 1000)
    assert files.privacy_fault(status_of(0)) is None
    assert files.privacy_fault(status_of(1000)) is None
    assert "1001" in str(files.privacy_fault(status_of(1001)))


def test_root_may_read_the_secrets_of_the_service_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "geteuid", lambda: 0)
    assert files.privacy_fault(status_of(998)) is None
    assert "open to other users" in str(files.privacy_fault(status_of(998, 0o100640)))


def test_a_strangers_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = key_file(tmp_path, KEY_HEX + SALT_HEX)
    monkeypatch.setattr(files.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(files.os, "fstat", lambda fd: status_of(1001))
    assert "belongs to user" in refusal(path)


def test_anything_but_a_regular_file_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    assert "not a regular file" in refusal(fifo)
    assert "not a regular file" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "missing")
    assert "file name" in refusal(Path("a\0b"))
    assert "directory" in refusal(key_file(tmp_path, "") / "below").lower()
    assert "\n" not in refusal(tmp_path / "two\nlines")


def test_an_oversized_file_is_refused(tmp_path: Path) -> None:
    content = f"{KEY_HEX}{SALT_HEX}\n#".encode().ljust(keyfile.MAX_KEY_FILE_LEN, b"#")
    keyfile.read_key_file(key_file(tmp_path, content), AES128)
    assert "larger than 16384 bytes" in refusal(key_file(tmp_path, content + b"#"))


def test_a_written_key_file_reads_back_and_is_private(tmp_path: Path) -> None:
    keymat = keyfile.generate(AES128)
    path = tmp_path / "new.key"
    old_umask = os.umask(0)
    try:
        keyfile.write_key_file(path, [keymat], "from a\nto b")
    finally:
        os.umask(old_umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keyfile.read_key_file(path, AES128) == (keymat,)
    assert path.read_text().splitlines()[:2] == ["# from a", "# to b"]


def test_writing_never_overwrites(tmp_path: Path) -> None:
    path = key_file(tmp_path, "precious")
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "elsewhere")
    for target in (path, dangling):
        with pytest.raises(KeyFileError, match="exists already"):
            keyfile.write_key_file(target, [keyfile.generate(AES128)])
    assert path.read_text() == "precious"
    assert not (tmp_path / "elsewhere").exists()


def test_writing_into_a_missing_folder_says_that_the_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"its folder does not exist; run: mkdir .*/none$"):
        keyfile.write_key_file(tmp_path / "none" / "k", [keyfile.generate(AES128)])


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(KeyFileError, match="No space left"):
        keyfile.write_key_file(tmp_path / "new.key", [keyfile.generate(AES128)])
    assert list(tmp_path.iterdir()) == []


def test_a_key_file_is_on_the_disk_before_writing_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fsync

    def note(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())
        real(fd)

    monkeypatch.setattr(files.os, "fsync", note)
    keyfile.write_key_file(tmp_path / "new.key", [keyfile.generate(AES128)])
    assert synced == [tmp_path / "new.key", tmp_path]


def test_generated_keys_differ_and_fit() -> None:
    keymats = [keyfile.generate(suite) for suite in SUITES.values() for _ in range(20)]
    assert len({keymat.to_bytes() for keymat in keymats}) == len(keymats)
    for suite in SUITES.values():
        keymat = keyfile.generate(suite)
        assert (len(keymat.key), len(keymat.salt)) == (suite.key_len, 4)
        assert keyfile.parse_keymat(keyfile.format_keymat(keymat), suite) == keymat


def test_a_credential_is_read_with_the_modes_that_systemd_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = key_file(tmp_path, KEY_HEX + SALT_HEX)
    for mode in (0o400, 0o440):
        path.chmod(mode)
        (keymat,) = keyfile.read_credential("site.key", AES128)
        assert keymat == KeyMaterial.from_bytes(bytes.fromhex(KEY_HEX + SALT_HEX))
    for mode in (0o404, 0o460):
        path.chmod(mode)
        with pytest.raises(KeyFileError, match="open to other users"):
            keyfile.read_credential("site.key", AES128)


@pytest.mark.parametrize("name", ["../etc/shadow", "a/b", "..", ".", "", "a..b", "/", "a\0", "a\n"])
def test_a_credential_stays_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    with pytest.raises(KeyFileError, match="not a valid credential name"):
        keyfile.read_credential(name, AES128)


def test_a_missing_credentials_directory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(KeyFileError, match="LoadCredential"):
        keyfile.read_credential("site", AES128)
