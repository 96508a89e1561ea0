"""A program that opens queues of the TUN device esp0, run as a script in its namespace.

`hold UID` opens one queue, prints `opened` or the error, and keeps it. `race UID SECONDS` prints
`ready` and goes on trying to be faster than the gateway; what it opens, it detaches and keeps, or
leaves behind with another owner, or persistent. Both end with standard input and print what they
got as JSON: packets that were read, and injected ones that the kernel took.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import struct
import sys
import time
from pathlib import Path

TUNSETIFF, TUNSETPERSIST, TUNSETOWNER, TUNSETQUEUE = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454D9
IFF_TUN, IFF_ATTACH, IFF_DETACH = 0x0001, 0x0200, 0x0400
IFF_NO_PI, IFF_MULTI_QUEUE, IFF_VNET_HDR = 0x1000, 0x0100, 0x4000
KINDS = (IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE, IFF_TUN | IFF_NO_PI)
"""The device of the native engine, and that of the python engine."""
VICTIM = bytes((10, 1, 0, 1)), 9999


def drop_privileges(uid: int) -> None:
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        lines = Path("/proc/self/status").read_text().splitlines()
        (capabilities,) = [line.split()[1] for line in lines if line.startswith("CapEff")]
        assert int(capabilities, 16) == 0


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def injected() -> bytes:
    """Return a datagram from the other network to the victim, behind an empty virtio_net_hdr."""
    address, port = VICTIM
    fields = [0x45, 0, 36, 1, 0, 64, 17, 0, bytes((10, 2, 0, 99)), address]
    fields[7] = checksum(struct.pack("!BBHHHBBH4s4s", *fields))
    header = struct.pack("!BBHHHBBH4s4s", *fields)
    return bytes(10) + header + struct.pack("!HHHH", 7, port, 16, 0) + b"injected"


class Intruder:
    def __init__(self) -> None:
        self.got = {"tries": 0, "opened": 0, "written": 0, "read": 0}
        self._packet = injected()

    def open(self, kind: int) -> int:
        """Open a queue, not the first one. Raises OSError."""
        queue = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self.got["tries"] += 1
        try:
            fcntl.ioctl(queue, TUNSETIFF, struct.pack("16sH22x", b"esp0", kind))
        except OSError:
            os.close(queue)
            raise
        self.got["opened"] += 1
        return queue

    def use(self, queue: int) -> bool:
        """Read and write; return False once the device is gone."""
        try:
            self.got["written"] += os.write(queue, self._packet) > 0
        except OSError as error:
            if error.errno == errno.EBADFD:
                return False
        try:
            self.got["read"] += len(os.read(queue, 1 << 16)) > 0
        except OSError as error:
            return error.errno != errno.EBADFD
        return True


def asked_to_end() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def switch(queue: int, flag: int) -> None:
    fcntl.ioctl(queue, TUNSETQUEUE, struct.pack("16sH22x", b"", flag))


def hold(intruder: Intruder) -> None:
    for kind in KINDS:
        try:
            queue = intruder.open(kind)
        except OSError as error:
            # The device is not of this kind.
            if error.errno == errno.EINVAL:
                continue
            print(errno.errorcode[error.errno], flush=True)
            return
        print("opened", flush=True)
        while intruder.use(queue) and not asked_to_end():
            time.sleep(0.005)
        return


def race(intruder: Intruder, seconds: float) -> None:
    print("ready", flush=True)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not asked_to_end():
        for kind in KINDS * 200:
            try:
                queue = intruder.open(kind)
            except OSError:
                continue
            plan = intruder.got["opened"] % 3
            if plan == 0:
                fcntl.ioctl(queue, TUNSETOWNER, os.getuid())
            elif plan == 1:
                fcntl.ioctl(queue, TUNSETPERSIST, 1)
            else:
                stay(intruder, queue, deadline)
            os.close(queue)


def stay(intruder: Intruder, queue: int, deadline: float) -> None:
    """Detach a queue, and use it detached and attached by turns."""
    attached = True
    while time.monotonic() < deadline and not asked_to_end():
        try:
            switch(queue, IFF_DETACH if attached else IFF_ATTACH)
        except OSError:
            return
        attached = not attached
        for _ in range(5):
            if not intruder.use(queue):
                return
            time.sleep(0.002)


def main(what: str, uid: str, seconds: str = "60") -> None:
    drop_privileges(int(uid))
    intruder = Intruder()
    if what == "hold":
        hold(intruder)
    else:
        race(intruder, float(seconds))
    print(json.dumps(intruder.got), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
