"""The TUN device: one descriptor for reading and writing whole IP packets.

Source: Documentation/networking/tuntap.rst of the kernel.
"""

from __future__ import annotations

import fcntl
import os
import struct

from esp_gw.engine.refusals import TUN_DEVICE, tun_not_created, tun_not_opened

_TUNSETIFF = 0x400454CA
_TUNSETOWNER = 0x400454CC
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_TUN_EXCL = 0x8000


def open_tun(name: str) -> int:
    """Create the TUN device `name`, which belongs to user 0, and return its descriptor.

    The descriptor is non-blocking and the only one: the device has a single queue. It lives only
    as long as that, so a killed daemon leaves none behind. Raises EngineError.
    """
    try:
        fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise tun_not_opened(name, error) from None
    request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_TUN_EXCL)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, request)
        fcntl.ioctl(fd, _TUNSETOWNER, 0)
    except OSError as error:
        os.close(fd)
        raise tun_not_created(name, error) from None
    return fd
