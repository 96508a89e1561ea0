"""The control socket as a file: permissions, creation at start and removal at the end."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from esp_gw.control.client import call
from esp_gw.control.protocol import PREFIX
from esp_gw.control.server import Caller, ControlServer, Handler, is_member, is_owner
from esp_gw.errors import EspGwError


async def echo(parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
    return parameters


HANDLERS: dict[str, Handler] = {PREFIX + "Echo": echo}


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer(path, HANDLERS)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def works(path: Path) -> bool:
    return await asyncio.to_thread(call, path, "Echo", {"n": 1}) == {"n": 1}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def there(path: Path) -> bool:
    return os.path.lexists(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.mark.parametrize(
    ("caller", "allowed"),
    [
        (Caller(1, 0, 0), True),
        (Caller(1, 777, 9), True),  # the daemon's own user
        (Caller(1, 1000, 500), True),  # runs with the group
        (Caller(1, 1001, 100), True),  # has it as a supplementary group
        (Caller(1, 1002, 100), False),
        (Caller(1, 9999, 100), False),  # an unknown user
        (Caller(1, 65534, 65534), False),  # from another user namespace
    ],
)
def test_the_users_allowed_on_the_socket(
    caller: Caller, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = {1000: "ann", 1001: "bob", 1002: "eve", 65534: "nobody"}
    groups = {"ann": [100], "bob": [100, 500], "eve": [100, 501], "nobody": [65534]}
    monkeypatch.setattr(os, "geteuid", lambda: 777)
    monkeypatch.setattr(grp, "getgrnam", {"esp-gw": SimpleNamespace(gr_gid=500)}.__getitem__)
    monkeypatch.setattr(
        pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name=users[uid], pw_gid=100)
    )
    monkeypatch.setattr(os, "getgrouplist", lambda name, _gid: groups[name])
    assert (is_owner(caller) or is_member(caller, "esp-gw")) is allowed


def test_without_the_group_only_root_and_the_daemons_user_are_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(name: str) -> object:
        raise KeyError(name)

    monkeypatch.setattr(os, "geteuid", lambda: 777)
    monkeypatch.setattr(grp, "getgrnam", unknown)
    callers = [Caller(1, uid, 0) for uid in (0, 777, 1000)]
    assert [is_owner(caller) for caller in callers] == [True, True, False]
    assert not any(is_member(caller, "esp-gw") for caller in callers)


async def test_the_socket_is_never_open_to_the_world_and_belongs_to_the_group(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, object]] = []

    def group(name: str) -> SimpleNamespace:
        seen.append((name, mode_of(path)))
        return SimpleNamespace(gr_gid=500)

    monkeypatch.setattr(grp, "getgrnam", group)
    monkeypatch.setattr(os, "chown", lambda _path, uid, gid: seen.append(("chown", (uid, gid))))
    before = os.umask(0)
    try:
        async with serving(path):
            assert mode_of(path) == 0o660
            assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert seen == [("esp-gw", 0o600), ("chown", (-1, 500))]


@pytest.mark.parametrize("failure", [KeyError("esp-gw"), PermissionError()])
async def test_without_the_group_or_the_right_to_chown_the_socket_still_serves(
    path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*_args: object) -> None:
        raise failure

    monkeypatch.setattr(grp, "getgrnam", fail)
    async with serving(path):
        assert mode_of(path) == 0o660
        assert await works(path)


async def test_the_socket_of_a_dead_daemon_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert there(path)
    async with serving(path):
        assert await works(path)


async def test_a_second_daemon_is_refused_and_the_first_one_keeps_working(path: Path) -> None:
    async with serving(path):
        with pytest.raises(EspGwError, match="another esp-gw is running"):
            await ControlServer(path, {}).start()
        assert await works(path)


async def test_a_daemon_too_busy_to_accept_is_alive(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as clients:
        busy.bind(str(path))
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        with pytest.raises(EspGwError, match="another esp-gw is running"):
            await ControlServer(path, {}).start()
    assert there(path)


def put_file(path: Path) -> None:
    path.write_text("precious")


def put_link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("put", [put_file, put_link, Path.mkdir])
async def test_anything_but_a_socket_is_never_removed(
    path: Path, put: Callable[[Path], None]
) -> None:
    put(path)
    with pytest.raises(EspGwError, match=r"control\.sock: exists but is not a socket"):
        await ControlServer(path, {}).start()
    assert there(path)


@pytest.mark.parametrize("name", ["missing/control.sock", "x" * 200])
async def test_an_impossible_path_is_one_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(EspGwError, match="the control socket can't be created: "):
        await ControlServer(tmp_path / name, {}).start()


async def test_a_missing_directory_is_reported_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(EspGwError, match=r"missing/control\.sock: .*; create its directory first"):
        await ControlServer(tmp_path / "missing" / "control.sock", {}).start()


async def test_close_removes_the_file_and_may_be_called_again(path: Path) -> None:
    async with serving(path) as server:
        assert there(path)
        await server.close()
        assert not there(path)
        await server.close()


async def test_close_leaves_the_socket_of_a_successor_alone(path: Path) -> None:
    async with serving(path) as old:
        await asyncio.to_thread(path.unlink)
        async with serving(path):
            await old.close()
            assert await works(path)
