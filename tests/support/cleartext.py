"""Protected packets sent without a pause, and a search for those that went out in the clear."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from esp_gw.demo.netns import Namespace
from tests.support.labtools import frames, running

_SENDER = """
import socket, sys, time
ways = []
for argument in sys.argv[1:]:
    target, _, source = argument.partition("@")
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    for device in (b"", b"wan"):
        s = socket.socket(family, socket.SOCK_DGRAM)
        s.setblocking(False)
        if device:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        if source:
            s.bind((source, 0))
        ways.append((s, target))
print("ready", flush=True)
while True:
    for s, target in ways:
        try:
            s.sendto(b"cleartext", (target, 9999))
        except OSError:
            pass
    time.sleep(0.002)
"""


@contextlib.contextmanager
def sending_to(host: Namespace, *targets: str) -> Iterator[None]:
    """Send to each target during the block, by route and by a socket bound to the outer device.

    A target may be followed by `@` and the source address.
    """
    with running(host, _SENDER, *targets):
        yield


def cleartext(path: Path, *targets: str) -> list[bytes]:
    """Return the frames of a capture that are addressed to a target, and so are in no ESP."""
    wanted = {ip_address(target).packed for target in targets}
    return [frame for frame in frames(path) if _destination(frame) in wanted]


def _destination(frame: bytes) -> bytes:
    is_ipv6 = frame[12:14] == b"\x86\xdd"
    if not is_ipv6 and frame[12:14] != b"\x08\x00":
        return b""
    return frame[38:54] if is_ipv6 else frame[30:34]
