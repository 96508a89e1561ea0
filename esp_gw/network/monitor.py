"""Netlink sockets that become readable when the kernel's network or packet filters change.

Sources: rtnetlink(7), linux/rtnetlink.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import socket

_ROUTE_GROUPS = (1, 5, 7, 8, 9, 11, 19)
"""Multicast groups of links, addresses, routes and rules, IPv4 and IPv6 (rtnetlink(7))."""
_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7
_MAX_DRAINED = 4096


def route_monitor() -> socket.socket:
    """Return a socket for changes of links, addresses, routes and rules. Raises OSError."""
    return _open(socket.NETLINK_ROUTE, _ROUTE_GROUPS)


def filter_monitor() -> socket.socket | None:
    """Return a socket for changes of any nftables table, or None without nf_tables."""
    try:
        return _open(_NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,))
    except OSError:
        return None


def drain(monitor: socket.socket) -> bool:
    """Discard the notifications and return True if there was one.

    The state is read afresh, so a lost notification doesn't matter.
    """
    for number in range(_MAX_DRAINED):
        try:
            monitor.recv(1)
        except BlockingIOError:
            return number > 0
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
    return True


def _open(protocol: int, groups: tuple[int, ...]) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    monitor = socket.socket(socket.AF_NETLINK, kind, protocol)
    try:
        monitor.bind((0, sum(1 << (group - 1) for group in groups)))
    except OSError:
        monitor.close()
        raise
    return monitor
