"""The errors of both engines for what the kernel refuses, each with what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping

from esp_gw.engine.base import OuterSocket
from esp_gw.errors import EngineError
from esp_gw.model import Encapsulation

_OS_ERROR = re.compile(r"(.*) \(os error (\d+)\)")
TUN_DEVICE = "/dev/net/tun"
LATENCY_DEVICE = "/dev/cpu_dma_latency"

_OPEN_ADVICE = {
    errno.EACCES: (
        f"{TUN_DEVICE} is closed to this user: udev gives it mode 0666, 'chmod' does, too"
    ),
    errno.ENOENT: "load the module with 'modprobe tun'",
    errno.ENODEV: "load the module with 'modprobe tun'",
}
_CREATE_ADVICE = {
    errno.EPERM: "it needs CAP_NET_ADMIN: run it as root or as the systemd service",
    errno.EINVAL: "it belongs to user 0, whom this user namespace lacks: run it where there is one",
}
_TAKEN = (errno.EBUSY, errno.EEXIST)
_SOCKET_ADVICE = {
    errno.EPERM: "raw ESP needs CAP_NET_RAW",
    errno.EADDRINUSE: (
        "another program listens there (an IKE daemon?): stop it, or set another 'port'"
    ),
}

_LATENCY_ADVICE = {
    errno.EACCES: "udev opens it to the group esp-gw: run 'scripts/install' again",
    errno.EPERM: f"the unit lacks 'DeviceAllow={LATENCY_DEVICE} rw': run 'scripts/install' again",
    errno.ENOENT: "this kernel or container has none: set 'latency: normal'",
}


def tun_not_opened(name: str, error: OSError) -> EngineError:
    """Return the error that says why /dev/net/tun can't be opened, and what to do."""
    return _failed(name, error, _OPEN_ADVICE)


def tun_not_created(name: str, error: OSError) -> EngineError:
    """Return the error that says why the kernel makes no such TUN device, and what to do."""
    if error.errno in _TAKEN:
        return EngineError(
            "can't make the TUN device: a device of this name exists",
            where=name,
            hint=(
                "stop the gateway or program that has it, remove a leftover with "
                f"'ip link delete {name}', or choose another 'interface'"
            ),
        )
    return _failed(name, error, _CREATE_ADVICE)


def _failed(name: str, error: OSError, advice: Mapping[int, str]) -> EngineError:
    number = error.errno or 0
    reason = os.strerror(number)
    return EngineError(f"can't make the TUN device: {reason}", where=name, hint=advice.get(number))


def socket_refused(wanted: OuterSocket, port: int, error: OSError) -> EngineError:
    """Return the error that says why the kernel gives no such socket, and what to do."""
    udp = wanted.encapsulation is Encapsulation.UDP
    return EngineError(
        f"can't open the outer socket: {os.strerror(error.errno or 0)}",
        where=f"{wanted.address} port {port}/udp" if udp else f"{wanted.address} protocol 50",
        hint=_SOCKET_ADVICE.get(error.errno or 0),
    )


def latency_refused(number: int) -> str:
    """Return why there is no low latency, from an errno; behind '; ' what to do, if it is known."""
    advice = _LATENCY_ADVICE.get(number)
    return f"{LATENCY_DEVICE}: {os.strerror(number)}" + (f"; {advice}" if advice else "")


def os_reason(text: str | None) -> str | None:
    """Return Rust's text of an error of the system with its name in front, without its number."""
    found = _OS_ERROR.fullmatch(text or "")
    if found is None:
        return text
    words, number = found[1], int(found[2])
    return f"{errno.errorcode.get(number, number)}: {words}"
