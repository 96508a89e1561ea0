"""A missing file is retried by a service manager; a wrong one is not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from esp_gw.config.load import load_config, load_state_dir, readable_control_socket
from esp_gw.errors import FAILED, WRONG_CONFIG, ConfigError, EspGwError
from tests.support.config_files import TUNNEL, write

CREDENTIAL = TUNNEL.replace("file: keys/b.out.key", "credential: b-out")


def status(path: Path) -> int:
    """The exit status of a daemon that can't load a configuration."""
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert refused.value.may_pass is (refused.value.exit_status == FAILED)
    return refused.value.exit_status


def test_an_error_may_pass_unless_its_kind_says_otherwise() -> None:
    assert EspGwError("").exit_status == FAILED


def test_a_missing_file_may_come(folder: Path) -> None:
    assert status(folder / "none.yaml") == FAILED
    assert status(folder / "none" / "none.yaml") == FAILED


def test_a_folder_without_a_file_may_be_a_mount_point(tmp_path: Path) -> None:
    assert status(tmp_path) == FAILED


def test_a_missing_key_file_may_come(folder: Path) -> None:
    path = write(folder, TUNNEL)
    (folder / "keys" / "b.out.key").unlink()
    assert status(path) == FAILED
    (folder / "keys" / "b.in.key").unlink()
    (folder / "keys").rmdir()
    assert status(path) == FAILED


def test_a_missing_credential_may_come(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, CREDENTIAL)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert status(path) == FAILED
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert status(path) == FAILED
    (folder / "b-out").write_text("no key\n")
    (folder / "b-out").chmod(0o400)
    assert status(path) == WRONG_CONFIG


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV])
def test_a_file_that_can_not_be_read_now_may_be_read_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = write(folder, TUNNEL)
    real = os.open

    def failing(name: object, *arguments: int) -> int:
        if str(name).endswith(".key"):
            raise OSError(code, os.strerror(code))
        return real(str(name), *arguments)

    monkeypatch.setattr(os, "open", failing)
    assert status(path) == FAILED


def open_to_others(path: Path) -> None:
    path.chmod(0o644)


def not_hex(path: Path) -> None:
    path.write_text("no key\n")


def too_long(path: Path) -> None:
    path.write_text("#" * 20000)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("spoil", [open_to_others, not_hex, too_long, a_folder, a_pipe, a_circle])
def test_a_key_file_that_is_there_and_wrong_stays_wrong(
    folder: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(folder / "keys" / "b.out.key")
    assert status(write(folder, TUNNEL)) == WRONG_CONFIG


def test_a_key_file_of_another_user_stays_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    if (folder / "keys" / "b.out.key").stat().st_uid == 0:
        os.chown(folder / "keys" / "b.out.key", 4343, -1)
    assert status(write(folder, TUNNEL)) == WRONG_CONFIG


def test_permission_that_is_denied_is_not_granted_by_waiting(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder, TUNNEL)

    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert status(path) == WRONG_CONFIG


@pytest.mark.parametrize("text", ["", "[", "\0", "gateway: {port: x}\n", TUNNEL + "colour: blue\n"])
def test_a_file_that_is_there_and_wrong_stays_wrong(folder: Path, text: str) -> None:
    assert status(write(folder, text)) == WRONG_CONFIG


def test_a_mistake_beside_a_missing_key_decides(folder: Path) -> None:
    (folder / "keys" / "b.out.key").unlink()
    assert status(write(folder, TUNNEL + "colour: blue\n")) == WRONG_CONFIG


def test_faults_that_may_follow_from_a_missing_file_do_not_decide(folder: Path) -> None:
    inline = TUNNEL.replace("file: keys/b.out.key", f"inline: {'5a' * 36}")
    write(folder, inline, "tunnel.yaml")
    (folder / "gateway.yaml").symlink_to(folder / "late" / "gateway.yaml")
    with pytest.raises(ConfigError, match="allow_inline_keys"):
        load_config(folder)
    assert status(folder) == FAILED


# Where a gateway keeps its state, without the rest


def test_the_state_directory_is_read_without_a_key_and_beside_other_faults(folder: Path) -> None:
    (folder / "keys" / "b.out.key").unlink()
    assert load_state_dir(write(folder, TUNNEL)) == Path("/var/lib/esp-gw")
    text = "gateway: {state_dir: /srv/state, port: x, colour: blue}\n"
    text += TUNNEL + "crypto: 5\ntunels: {}\n"
    assert load_state_dir(write(folder, text)) == Path("/srv/state")


def test_the_state_directory_is_read_beside_a_broken_file_if_another_one_has_it(
    folder: Path,
) -> None:
    write(folder, "gateway: {state_dir: /srv/state}\n", "gateway.yaml")
    write(folder, "[", "tunnels.yaml")
    assert load_state_dir(folder) == Path("/srv/state")


@pytest.mark.parametrize("text", ["[", "gateway: 5\n", "gateway: {state_dir: here}\n"])
def test_a_state_directory_that_may_be_elsewhere_is_not_guessed(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load_state_dir(write(folder, text))
    with pytest.raises(ConfigError) as absent:
        load_state_dir(folder / "none.yaml")
    assert absent.value.may_pass


@pytest.mark.parametrize(
    ("text", "socket"),
    [
        ("gateway: {control_socket: /srv/x.sock, port: [}\n", "/srv/x.sock"),
        ("gateway: {control_socket: x}\n", "/run/esp-gw/control.sock"),
        ("[", "/run/esp-gw/control.sock"),
        (TUNNEL, "/run/esp-gw/control.sock"),
    ],
)
def test_the_control_socket_is_read_up_to_a_syntax_error(
    folder: Path, text: str, socket: str
) -> None:
    assert readable_control_socket(write(folder, text)) == Path(socket)
    assert readable_control_socket(folder / "none.yaml") == Path("/run/esp-gw/control.sock")
