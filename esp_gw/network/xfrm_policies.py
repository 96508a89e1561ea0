"""The kernel's own IPsec policies that would take a gateway's packets.

Sources: linux/xfrm.h, xfrm_dump_policy in net/xfrm/xfrm_user.c.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from esp_gw.errors import NetworkError
from esp_gw.model import IPNetwork
from esp_gw.network.messages import FAMILY, MessageSocket, attributes

_XFRM = 6
"""NETLINK_XFRM."""
_GET_POLICY, _TEMPLATES = 21, 5
_POLICY = struct.Struct("=16s16sHHHHHBBB3xiI64x32xIIBB2x4x")
"""struct xfrm_userpolicy_info: selector, lifetimes, priority, index, direction, action."""
_DIRECTIONS = ("in", "out", "fwd")
_BLOCK = 1
_ABSENT = (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class KernelPolicy:
    """A policy by which the kernel drops packets, or protects them itself."""

    direction: str
    source: IPNetwork
    destination: IPNetwork
    drops: bool

    def takes(self, local: IPNetwork, remote: IPNetwork) -> bool:
        """Return True for a policy that packets between these prefixes may meet."""
        ends = (local, remote) if self.direction == "out" else (remote, local)
        return _overlap(self.source, ends[0]) and _overlap(self.destination, ends[1])


def kernel_policies() -> list[KernelPolicy]:
    """Return the kernel's policies that do something; none where it has no IPsec.

    Raises NetworkError if they may not be read.
    """
    try:
        messages = MessageSocket(_open_socket)
    except OSError as error:
        if error.errno in _ABSENT:
            return []
        raise NetworkError(str(error.strerror), where="XFRM policies") from error
    with contextlib.closing(messages):
        try:
            bodies = messages.dump(_GET_POLICY, bytes(_ID_SIZE), "XFRM policies")
        except OSError as error:
            raise NetworkError(str(error.strerror), where="XFRM policies") from error
    return list(_read(bodies))


_ID_SIZE = 64
"""Bytes of struct xfrm_userpolicy_id, which a dump doesn't look at."""


def _open_socket() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _XFRM)
    opened.bind((0, 0))
    return opened


def _read(bodies: Iterable[bytes]) -> Iterator[KernelPolicy]:
    versions = {family: version for version, family in FAMILY.items()}
    for body in bodies:
        fields = _POLICY.unpack_from(body)
        daddr, saddr, family, to_len, from_len = (*fields[:2], fields[6], fields[7], fields[8])
        direction, action = fields[-2:]
        has_templates = bool(dict(attributes(body[_POLICY.size :])).get(_TEMPLATES))
        # Policies of sockets, such as an IKE daemon's own, have further directions.
        if family not in versions or direction >= len(_DIRECTIONS):
            continue
        if action != _BLOCK and not has_templates:
            continue
        size = 4 if versions[family] == 4 else 16
        source, destination = (
            ip_network((ip_address(address[:size]), length), strict=False)
            for address, length in ((saddr, from_len), (daddr, to_len))
        )
        yield KernelPolicy(_DIRECTIONS[direction], source, destination, action == _BLOCK)


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)
