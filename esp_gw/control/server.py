"""The control socket of the daemon: access control, and dispatch of requests to handlers.

A slow, silent or misbehaving client costs one of 32 connections for a bounded time, and never
blocks another client or the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from esp_gw.control.protocol import Request, RequestDecoder, encode_error, encode_reply
from esp_gw.errors import ControlError, EspGwError
from esp_gw.files import inode
from esp_gw.logs import log

MAX_CONNECTIONS = 32
REQUEST_TIMEOUT = 30.0
"""Seconds a connection may take until its next request is complete."""
REPLY_TIMEOUT = 10.0
"""Seconds a client may take to read a reply."""
READ_SIZE = 64 * 1024

_LISTEN_HINTS = {
    errno.ENOENT: "create its directory first, as the systemd unit does",
    errno.EACCES: "run this as root or as the systemd service",
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Credentials of the client process, from the kernel (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int
    gid: int


Handler = Callable[[dict[str, object], Caller], Awaitable[dict[str, object]]]


def may_use(caller: Caller, group: str) -> bool:
    """True if a caller may control the gateway: root, the daemon's user, a member of `group`."""
    if caller.uid in (0, os.geteuid()):
        return True
    try:
        gid = grp.getgrnam(group).gr_gid
        if caller.gid == gid:
            return True
        user = pwd.getpwuid(caller.uid)
    except KeyError:
        return False
    return gid in os.getgrouplist(user.pw_name, user.pw_gid)


class ControlServer:
    """Serves `handlers`, keyed by full method names (io.esp_gw.ListSas), on a unix socket.

    A ControlError raised by a handler becomes an error reply with its code, another EspGwError one
    with Refused. Any other exception becomes Internal; its traceback goes only to the log.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler], group: str = "esp-gw") -> None:
        self._path = path
        self._handlers = handlers
        self._group = group
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen at the path. Raises EspGwError if that fails or another daemon listens there."""
        try:
            _remove_stale(self._path)
            sock = _listen(self._path, self._group)
        except OSError as error:
            raise EspGwError(
                f"the control socket can't be created: {error.strerror or error}",
                where=str(self._path),
                hint=_LISTEN_HINTS.get(error.errno or 0),
            ) from error
        self._inode = inode(self._path)
        self._server = await asyncio.start_unix_server(self._on_connection, sock=sock)

    async def close(self) -> None:
        """Remove the socket file and drop every connection; running handlers are cancelled."""
        if self._server is None:
            return
        with contextlib.suppress(OSError):
            if inode(self._path) == self._inode:
                self._path.unlink(missing_ok=True)
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._run(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # With a buffer limit of 0, drain() waits until the client has read the whole reply.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            await self._serve(reader, writer)
        except ControlError as error:
            with contextlib.suppress(TimeoutError, OSError):
                await _send(writer, encode_error(error))
        except (TimeoutError, OSError) as error:
            log.debug("control connection ended", error=str(error) or type(error).__name__)
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests until the client closes; raises ControlError as the final reply."""
        if len(self._connections) > MAX_CONNECTIONS:
            raise ControlError("Refused", "too many connections", hint="try again later")
        caller = _caller_of(writer)
        # The lookup may query a directory server, so it runs outside the loop.
        if not await asyncio.to_thread(may_use, caller, self._group):
            log.warning("control connection refused", uid=caller.uid, pid=caller.pid)
            raise ControlError(
                "PermissionDenied",
                f"user {caller.uid} may not control the gateway",
                hint=f"add yourself to the group {self._group}, or use sudo",
            )
        decoder = RequestDecoder()
        while (request := await _next_request(reader, decoder)) is not None:
            await _send(writer, await self._answer(request, caller))
            # A client that pipelines requests yields to the others after each one.
            await asyncio.sleep(0)

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


async def _next_request(reader: asyncio.StreamReader, decoder: RequestDecoder) -> Request | None:
    async with asyncio.timeout(REQUEST_TIMEOUT):
        while (request := decoder.next_request()) is None:
            data = await reader.read(READ_SIZE)
            if not data:
                return None
            decoder.receive_data(data)
    return request


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    async with asyncio.timeout(REPLY_TIMEOUT):
        writer.write(data)
        await writer.drain()


def _caller_of(writer: asyncio.StreamWriter) -> Caller:
    credentials = struct.Struct("3i")
    sock = writer.get_extra_info("socket")
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
        sock.listen(MAX_CONNECTIONS)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
