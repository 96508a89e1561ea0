"""The control socket of the daemon: access control, and dispatch of requests to handlers.

A slow, silent or misbehaving client costs one of its user's places for a bounded time (places.py),
and never blocks another client or the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import os
import pwd
import select
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from esp_gw.control.places import Place, Places
from esp_gw.control.protocol import Request, RequestDecoder, encode_error, encode_reply
from esp_gw.errors import ControlError, EspGwError
from esp_gw.files import inode
from esp_gw.logs import log

BACKLOG = 128
"""Connections that the kernel holds until they are accepted."""
ACCEPT_PAUSE = 1.0
"""Seconds until the next try where neither the kernel nor a client has a descriptor to give."""
REQUEST_TIMEOUT = 30.0
"""Seconds a connection may take until its next request is complete."""
REPLY_TIMEOUT = 10.0
"""Seconds a client may take to read a reply."""
READ_SIZE = 64 * 1024

_LISTEN_HINTS = {
    errno.ENOENT: "create its directory first, as the systemd unit does",
    errno.EACCES: "run this as root or as the systemd service",
}
_TAKEN_AWAY = ControlError(
    "Refused", "too many connections: this one waited longest", hint="connect again"
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Credentials of the client process, from the kernel (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int
    gid: int


Handler = Callable[[dict[str, object], Caller], Awaitable[dict[str, object]]]


def is_owner(caller: Caller) -> bool:
    """True if the caller is root or the daemon's own user."""
    return caller.uid in (0, os.geteuid())


def is_member(caller: Caller, group: str) -> bool:
    """True if the caller is a member of `group`; a directory server may be asked."""
    try:
        gid = grp.getgrnam(group).gr_gid
        if caller.gid == gid:
            return True
        user = pwd.getpwuid(caller.uid)
    except KeyError:
        return False
    return gid in os.getgrouplist(user.pw_name, user.pw_gid)


@dataclass(eq=False, slots=True)
class _Connection:
    sock: socket.socket
    caller: Caller
    place: Place
    task: asyncio.Task[None] | None = None
    mid_reply: bool = False


class ControlServer:
    """Serves `handlers`, keyed by full method names (io.esp_gw.ListSas), on a unix socket.

    A ControlError raised by a handler becomes an error reply with its code, another EspGwError one
    with Refused. Any other exception becomes Internal; its traceback goes only to the log.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler], group: str = "esp-gw") -> None:
        self._path = path
        self._handlers = handlers
        self._group = group
        self._accepting: asyncio.Task[None] | None = None
        self._inode: tuple[int, int] | None = None
        self._places = Places()
        self._connections: dict[Place, _Connection] = {}
        # Of its own: a directory server that is slow delays nothing but its users.
        self._lookups = ThreadPoolExecutor(2, thread_name_prefix="lookup")

    async def start(self) -> None:
        """Listen at the path. Raises EspGwError if that fails or another daemon listens there."""
        try:
            _remove_stale(self._path)
            listener = _listen(self._path, self._group)
        except OSError as error:
            raise EspGwError(
                f"the control socket can't be created: {error.strerror or error}",
                where=str(self._path),
                hint=_LISTEN_HINTS.get(error.errno or 0),
            ) from error
        self._inode = inode(self._path)
        self._accepting = asyncio.create_task(self._accept(listener))

    async def close(self) -> None:
        """Remove the socket file and drop every connection; running handlers are cancelled."""
        if self._accepting is None:
            return
        with contextlib.suppress(OSError):
            if inode(self._path) == self._inode:
                self._path.unlink(missing_ok=True)
        tasks = [self._accepting, *(each.task for each in self._connections.values() if each.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lookups.shutdown(wait=False, cancel_futures=True)
        self._accepting = None

    async def _accept(self, listener: socket.socket) -> None:
        loop, knock = asyncio.get_running_loop(), asyncio.Event()
        is_short = False
        with listener:
            try:
                # One for each turn of the loop: a crowd at the door yields to the clients inside.
                loop.add_reader(listener, knock.set)
                while await knock.wait():
                    knock.clear()
                    try:
                        sock = _next_client(listener)
                    except BlockingIOError:
                        continue
                    except OSError as error:
                        # Without a descriptor the kernel refuses before it looks for a client.
                        if not _someone_waits(listener):
                            continue
                        if not is_short:
                            log.warning("no control connection is accepted", reason=error.strerror)
                        is_short = True
                        if not self._give_up_longest():
                            loop.remove_reader(listener)
                            await asyncio.sleep(ACCEPT_PAUSE)
                            loop.add_reader(listener, knock.set)
                    else:
                        is_short = False
                        self._admit(sock)
            finally:
                loop.remove_reader(listener)

    def _admit(self, sock: socket.socket) -> None:
        caller = _caller_of(sock)
        try:
            place, former = self._places.take(caller.uid)
        except ControlError as error:
            _send_at_once(sock, error)
            _close(sock)
            return
        if former is not None:
            self._give_up(former)
        connection = self._connections[place] = _Connection(sock, caller, place)
        connection.task = asyncio.create_task(self._run(connection))
        connection.task.add_done_callback(lambda task: self._ended(connection, task))

    def _give_up_longest(self) -> bool:
        former = self._places.take_longest()
        if former is not None:
            self._give_up(former)
        return former is not None

    def _give_up(self, place: Place) -> None:
        """End the connection whose place was taken away."""
        connection = self._connections[place]
        if not connection.mid_reply:
            _send_at_once(connection.sock, _TAKEN_AWAY)
        if connection.task is not None:
            connection.task.cancel()

    def _ended(self, connection: _Connection, task: asyncio.Task[None]) -> None:
        self._places.free(connection.place)
        del self._connections[connection.place]
        _close(connection.sock)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a control connection failed", reason=str(error))

    async def _run(self, connection: _Connection) -> None:
        try:
            await self._serve(connection)
        except ControlError as error:
            with contextlib.suppress(TimeoutError, OSError):
                await _send(connection, encode_error(error))
        except (TimeoutError, OSError) as error:
            log.debug("control connection ended", error=str(error) or type(error).__name__)

    async def _serve(self, connection: _Connection) -> None:
        """Answer requests until the client closes; raises ControlError as the final reply."""
        caller = connection.caller
        if not is_owner(caller) and not await self._is_member(caller):
            log.warning("control connection refused", uid=caller.uid, pid=caller.pid)
            raise ControlError(
                "PermissionDenied",
                f"user {caller.uid} may not control the gateway",
                hint=f"add yourself to the group {self._group}, or use sudo",
            )
        decoder = RequestDecoder()
        while (request := await _next_request(connection.sock, decoder)) is not None:
            self._places.begin(connection.place)
            reply = await self._answer(request, caller)
            self._places.wait(connection.place)
            await _send(connection, reply)
            # A client that pipelines requests yields to the others after each one.
            await asyncio.sleep(0)

    async def _is_member(self, caller: Caller) -> bool:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._lookups, is_member, caller, self._group)

    async def _answer(self, request: Request, caller: Caller) -> bytes:
        try:
            return encode_reply(await self._handler(request.method)(request.parameters, caller))
        except ControlError as error:
            return encode_error(error)
        except EspGwError as error:
            what = f"{error.where}: {error.what}" if error.where else error.what
            return encode_error(ControlError("Refused", what, hint=error.hint))
        except Exception:
            log.exception("control request failed", method=request.method)
            return encode_error(
                ControlError("Internal", "internal error", hint="see the log of esp-gw")
            )

    def _handler(self, method: str) -> Handler:
        handler = self._handlers.get(method)
        if handler is None:
            raise ControlError(
                "MethodNotFound",
                f"no method {method[:100]!r}",
                hint="restart the daemon if esp-gw was upgraded",
            )
        return handler


def _someone_waits(listener: socket.socket) -> bool:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


def _next_client(listener: socket.socket) -> socket.socket:
    sock, _ = listener.accept()
    sock.setblocking(False)
    return sock


async def _next_request(sock: socket.socket, decoder: RequestDecoder) -> Request | None:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(REQUEST_TIMEOUT):
        while (request := decoder.next_request()) is None:
            data = await loop.sock_recv(sock, READ_SIZE)
            if not data:
                return None
            decoder.receive_data(data)
    return request


async def _send(connection: _Connection, data: bytes) -> None:
    connection.mid_reply = True
    async with asyncio.timeout(REPLY_TIMEOUT):
        await asyncio.get_running_loop().sock_sendall(connection.sock, data)
    connection.mid_reply = False


def _send_at_once(sock: socket.socket, error: ControlError) -> None:
    with contextlib.suppress(OSError):
        sock.send(encode_error(error))


def _close(sock: socket.socket) -> None:
    # Closed with a request unread, the socket would be reset, and some clients lose the last reply.
    with contextlib.suppress(OSError):
        sock.recv(READ_SIZE)
    sock.close()


def _caller_of(sock: socket.socket) -> Caller:
    credentials = struct.Struct("3i")
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return Caller(*credentials.unpack(data))


def _remove_stale(path: Path) -> None:
    """Remove the socket file of a dead daemon. Raises EspGwError for anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise EspGwError("exists but is not a socket", where=str(path), hint="remove it")
    with socket.socket(socket.AF_UNIX) as probe:
        # A live daemon with a full backlog answers EAGAIN: only ECONNREFUSED means a dead one.
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass
    raise EspGwError(
        "another esp-gw is running", where=str(path), hint="stop it, or give this one another path"
    )


def _listen(path: Path, group: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        before = os.umask(0o177)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(before)
        with contextlib.suppress(KeyError, PermissionError):
            gid = grp.getgrnam(group).gr_gid
            # As a service with this group the daemon may make no such call, and needs none.
            if path.stat().st_gid != gid:
                os.chown(path, -1, gid)
        path.chmod(0o660)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
