"""Withdraws AF_ALG from a running process: on SIGUSR1 seccomp refuses it with EPERM.

Python imports this module at startup if this folder is on PYTHONPATH. Open sockets stay open, as
after a policy change under a running service.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import socket
import struct
from pathlib import Path

_SOCKET, _SENDMSG, _SECCOMP = {
    "x86_64": (41, 46, 317),
    "aarch64": (198, 211, 277),
}[platform.machine()]
_SO_DOMAIN = 39
_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _FIRST_ARGUMENT = 0, 16
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _instruction(code: int, value: int, if_not: int = 0) -> bytes:
    return struct.pack("HBBI", code, 0, if_not, value)


def _refuse(call: int, first_argument: int) -> bytes:
    """Instructions that refuse a system call with this first argument, else fall through."""
    return b"".join(
        (
            _instruction(_LOAD, _NUMBER),
            _instruction(_JUMP_IF_EQUAL, call, 3),
            _instruction(_LOAD, _FIRST_ARGUMENT),
            _instruction(_JUMP_IF_EQUAL, first_argument, 1),
            _instruction(_RETURN, _REFUSE),
        )
    )


def _is_af_alg(fd: str) -> bool:
    try:
        ours = os.dup(int(fd))
    except OSError:
        return False  # the descriptor of /proc/self/fd itself
    try:
        # With a family given, Python does not ask for the name, which AF_ALG sockets lack.
        sock = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET, 0, ours)
    except OSError:
        # Of a pipe to another program, the other end would never see the end.
        os.close(ours)
        return False
    with sock:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN) == socket.AF_ALG


def _lose(*_: object) -> None:
    ours = [int(path.name) for path in Path("/proc/self/fd").iterdir() if _is_af_alg(path.name)]
    code = _refuse(_SOCKET, socket.AF_ALG)
    code += b"".join(_refuse(_SENDMSG, fd) for fd in ours)
    code += _instruction(_RETURN, _ALLOW)
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.syscall(_SECCOMP, _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "seccomp")


signal.signal(signal.SIGUSR1, _lose)
