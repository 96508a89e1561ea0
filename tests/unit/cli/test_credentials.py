"""The credentials of a unit, from where systemd takes them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from esp_gw.cli import credentials as credentials_module
from esp_gw.cli.credentials import credentials_of
from esp_gw.cli.unit import Unit
from tests.support.fake_systemd import install


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with empty stores `etc`, `run` and `system`, and a systemd-creds."""
    install(tmp_path, monkeypatch, None)
    for name in ("etc", "etc.encrypted", "run", "system"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(credentials_module, "STORES", (tmp_path / "etc", tmp_path / "run"))
    monkeypatch.setattr(credentials_module, "OF_THE_SYSTEM", tmp_path / "system")
    return tmp_path


def found(settings: str) -> dict[str, bytes]:
    """The credentials of a unit that starts."""
    contents, faults = credentials_of(Unit.parse(f"[Service]\n{settings}\n"))
    assert faults == []
    return contents


def fault(settings: str) -> str:
    """The only reason that a unit does not start."""
    contents, (problem,) = credentials_of(Unit.parse(f"[Service]\n{settings}\n"))
    assert contents == {}
    return str(problem)


def test_a_file_is_read(stores: Path) -> None:
    (stores / "a.key").write_bytes(b"secret\0\n")
    assert found(f"LoadCredential=a:{stores}/a.key") == {"a": b"secret\0\n"}


def test_a_name_is_searched_in_the_stores_and_optional(stores: Path) -> None:
    assert found("LoadCredential=a") == {}
    (stores / "run" / "a").write_text("3")
    (stores / "etc" / "b").write_text("2")
    assert found("LoadCredential=a\nLoadCredential=x:b") == {"a": b"3", "x": b"2"}
    (stores / "etc" / "a").write_text("2")
    assert found("LoadCredential=a") == {"a": b"2"}
    (stores / "system" / "a").write_text("1")
    assert found("LoadCredential=a") == {"a": b"1"}


def test_a_folder_gives_every_file_below_it(stores: Path) -> None:
    (stores / "keys" / "in").mkdir(parents=True)
    (stores / "keys" / "one").write_text("1")
    (stores / "keys" / "in" / "two").write_text("2")
    (stores / "keys" / "link").symlink_to(stores / "keys" / "one")
    assert found(f"LoadCredential=k:{stores}/keys") == {"k_one": b"1", "k_in_two": b"2"}


def test_what_is_encrypted_is_decrypted_under_its_name(stores: Path) -> None:
    (stores / "a.cred").write_text("a the key")
    (stores / "etc.encrypted" / "b").write_text("b another")
    settings = f"LoadCredentialEncrypted=a:{stores}/a.cred\nLoadCredentialEncrypted=b"
    assert found(settings) == {"a": b"the key", "b": b"another"}
    assert found("LoadCredential=b") == {}


def test_what_can_not_be_loaded_names_credential_place_and_reason(stores: Path) -> None:
    where = f"esp-gw.service: credential a: {stores}/a.cred: "
    assert fault(f"LoadCredential=a:{stores}/a.cred") == f"{where}No such file or directory"
    (stores / "a.cred").write_text("for another name")
    text = fault(f"LoadCredentialEncrypted=a:{stores}/a.cred")
    assert text == f"{where}Failed to decrypt: Bad message"
    assert fault("SetCredentialEncrypted=a:x") == (
        "esp-gw.service: credential a: Failed to decrypt: Bad message"
    )


def test_a_socket_is_left_to_the_service(stores: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stores / "socket"))
        assert "only the service itself" in fault(f"LoadCredential=a:{stores}/socket")


def test_a_text_of_the_unit_is_the_default_of_what_can_not_be_loaded(stores: Path) -> None:
    settings = f"SetCredential=a:x\\ny\nLoadCredential=a:{stores}/a"
    assert found(settings) == {"a": b"x\ny"}
    (stores / "a").write_text("loaded")
    assert found(settings) == {"a": b"loaded"}
    assert found("SetCredentialEncrypted=a:a text") == {"a": b"text"}


def test_a_pattern_imports_from_the_stores_and_replaces_nothing(stores: Path) -> None:
    (stores / "etc" / "esp-gw.a").write_text("1")
    (stores / "etc.encrypted" / "esp-gw.b").write_text("esp-gw.b 2")
    (stores / "etc.encrypted" / "esp-gw.c").write_text("for another name")
    (stores / "etc" / "other").write_text("4")
    assert found("ImportCredential=esp-gw.*") == {"esp-gw.a": b"1", "esp-gw.b": b"2"}
    (stores / "mine").write_text("5")
    assert found(f"ImportCredential=esp-gw.a\nLoadCredential=esp-gw.a:{stores}/mine") == {
        "esp-gw.a": b"5"
    }
