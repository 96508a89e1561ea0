"""The TUN device: one descriptor that gives and takes whole IP packets.

Source: Documentation/networking/tuntap.rst of the kernel.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Mapping

from esp_gw.errors import EngineError

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_TUN_EXCL = 0x8000
DEVICE = "/dev/net/tun"

_OPEN_ADVICE = {
    errno.EACCES: f"{DEVICE} is closed to this user: udev gives it mode 0666, 'chmod' does, too",
    errno.ENOENT: "load the module with 'modprobe tun'",
    errno.ENODEV: "load the module with 'modprobe tun'",
}
_CREATE_ADVICE = {
    errno.EPERM: "it needs CAP_NET_ADMIN: run it as root or as the systemd service",
    errno.EBUSY: "another program holds this name: stop it, or choose another 'interface'",
    errno.EEXIST: "another program holds this name: stop it, or choose another 'interface'",
    errno.EINVAL: "a device that is not a TUN has this name: choose another 'interface'",
}


def open_tun(name: str) -> int:
    """Create the TUN device `name` and return its non-blocking descriptor.

    The device lives as long as the descriptor, so that a killed daemon leaves none behind.
    Raises EngineError.
    """
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise not_opened(name, error) from None
    request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_TUN_EXCL)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, request)
    except OSError as error:
        os.close(fd)
        raise not_created(name, error) from None
    return fd


def not_opened(name: str, error: OSError) -> EngineError:
    """Return the error that says why /dev/net/tun can't be opened, and what to do."""
    return _failed(name, error, _OPEN_ADVICE)


def not_created(name: str, error: OSError) -> EngineError:
    """Return the error that says why the kernel makes no such TUN device, and what to do."""
    return _failed(name, error, _CREATE_ADVICE)


def _failed(name: str, error: OSError, advice: Mapping[int, str]) -> EngineError:
    number = error.errno or 0
    reason = os.strerror(number)
    return EngineError(f"can't make the TUN device: {reason}", where=name, hint=advice.get(number))
