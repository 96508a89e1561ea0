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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from esp_gw.control.places import Place, Places
from esp_gw.control.protocol import (
    Request,
    RequestDecoder,
    encode_continued,
    encode_error,
    encode_reply,
)
from esp_gw.control.sessions import Link
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
_FULL_PAUSE = 0.01
"""Seconds between two tries to send a reply with files to a client that reads nothing."""

_LISTEN_HINTS = {
    errno.ENOENT: "create its directory first, as the systemd unit does",
    errno.EACCES: "run this as root or as the systemd service",
}
_TAKEN_AWAY = ControlError(
    "Refused", "too many connections: this one waited longest", hint="connect again"
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Credentials of the client process, from the kernel (SO_PEERCRED, unix(7)), and its link."""

    pid: int
    uid: int
    gid: int
    link: Link | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Last:
    """The last reply of a stream, after which the connection ends."""

    parameters: dict[str, object]


class Stream(Protocol):
    """Several replies, or replies without an end; the client is not asked for anything more."""

    async def next(self) -> dict[str, object] | Last:
        """Return the parameters of the next reply, once there is one."""

    def close(self) -> None:
        """End it: the connection is gone."""


@dataclass(frozen=True, slots=True)
class WithFiles:
    """A reply with sockets, which the client gets as copies (SCM_RIGHTS); they are closed here."""

    parameters: dict[str, object]
    files: tuple[socket.socket, ...]

    def close(self) -> None:
        """Close the sockets of this side."""
        for each in self.files:
            each.close()


Reply = dict[str, object] | Stream | WithFiles
Handler = Callable[[dict[str, object], Caller], Awaitable[Reply]]


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


class _Connection:
    """A connection; one that `is_kept` has no place, and no time by which it must ask."""

    def __init__(
        self, sock: socket.socket, caller: Caller, place: Place, free: Callable[[Place], None]
    ) -> None:
        self.sock = sock
        self.place = place
        self.task: asyncio.Task[None] | None = None
        self.mid_reply = False
        self.is_kept = False
        self._free = free
        self.caller = replace(caller, link=self)

    @property
    def pid(self) -> int:
        return self.caller.pid

    def keep(self) -> None:
        self.is_kept = True
        self._free(self.place)

    def end(self, why: str) -> None:
        self.give_up(ControlError("Refused", why, hint="connect again"))

    def give_up(self, why: ControlError) -> None:
        if not self.mid_reply:
            _send_at_once(self.sock, why)
        if self.task is not None:
            self.task.cancel()


class ControlServer:
    """Serves `handlers`, keyed by full method names (io.esp_gw.ListSas), on a unix socket.

    A ControlError raised by a handler becomes an error reply with its code, another EspGwError one
    with Refused. Any other exception becomes Internal; its traceback goes only to the log.
    `on_end` is told of each connection that has ended.
    """

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Handler],
        group: str = "esp-gw",
        on_end: Callable[[Link], None] = lambda _link: None,
    ) -> None:
        self._path = path
        self._handlers = handlers
        self._group = group
        self._on_end = on_end
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
        connection = self._connections[place] = _Connection(sock, caller, place, self._places.free)
        connection.task = asyncio.create_task(self._run(connection))
        connection.task.add_done_callback(lambda task: self._ended(connection, task))

    def _give_up_longest(self) -> bool:
        former = self._places.take_longest()
        if former is not None:
            self._give_up(former)
        return former is not None

    def _give_up(self, place: Place) -> None:
        """End the connection whose place was taken away."""
        self._connections[place].give_up(_TAKEN_AWAY)

    def _ended(self, connection: _Connection, task: asyncio.Task[None]) -> None:
        self._places.free(connection.place)
        del self._connections[connection.place]
        self._on_end(connection)
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
        while (request := await _next_request(connection, decoder)) is not None:
            self._places.begin(connection.place)
            reply = await self._answer(request, caller)
            if not isinstance(reply, bytes | WithFiles):
                await _send_all(connection, reply)
                return
            if not connection.is_kept:
                self._places.wait(connection.place)
            if isinstance(reply, bytes):
                await _send(connection, reply)
            else:
                with contextlib.closing(reply):
                    await _send_files(connection, reply)
            # A client that pipelines requests yields to the others after each one.
            await asyncio.sleep(0)

    async def _is_member(self, caller: Caller) -> bool:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._lookups, is_member, caller, self._group)

    async def _answer(self, request: Request, caller: Caller) -> bytes | Stream | WithFiles:
        try:
            reply = await self._handler(request.method)(request.parameters, caller)
            return encode_reply(reply) if isinstance(reply, dict) else reply
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


async def _next_request(connection: _Connection, decoder: RequestDecoder) -> Request | None:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None if connection.is_kept else REQUEST_TIMEOUT):
        while (request := decoder.next_request()) is None:
            data = await loop.sock_recv(connection.sock, READ_SIZE)
            if not data:
                return None
            decoder.receive_data(data)
    return request


async def _send(connection: _Connection, data: bytes) -> None:
    connection.mid_reply = True
    async with asyncio.timeout(REPLY_TIMEOUT):
        await asyncio.get_running_loop().sock_sendall(connection.sock, data)
    connection.mid_reply = False


async def _send_files(connection: _Connection, reply: WithFiles) -> None:
    """Send a reply whose files come with its first byte."""
    data, files = encode_reply(reply.parameters), [each.fileno() for each in reply.files]
    connection.mid_reply = True
    async with asyncio.timeout(REPLY_TIMEOUT):
        while True:
            try:
                sent = socket.send_fds(connection.sock, [data], files)
                break
            except BlockingIOError:
                # Former replies are unread.
                await asyncio.sleep(_FULL_PAUSE)
        await asyncio.get_running_loop().sock_sendall(connection.sock, data[sent:])
    connection.mid_reply = False


async def _send_all(connection: _Connection, stream: Stream) -> None:
    """Send the replies of a stream until the last, or the client closes or sends anything more."""
    loop = asyncio.get_running_loop()

    async def put(line: bytes) -> None:
        connection.mid_reply = True
        async with asyncio.timeout(None if connection.is_kept else REPLY_TIMEOUT):
            await loop.sock_sendall(connection.sock, line)
        connection.mid_reply = False

    async def send() -> None:
        while not isinstance(reply := await stream.next(), Last):
            await put(encode_continued(reply))
        await put(encode_reply(reply.parameters))

    tasks = [
        asyncio.create_task(send()),
        asyncio.create_task(loop.sock_recv(connection.sock, READ_SIZE)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        try:
            stream.close()
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)


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
