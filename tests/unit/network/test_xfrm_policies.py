"""The kernel's own policies, as this kernel and `ip xfrm policy` have them."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_network

import pytest

from esp_gw.network import xfrm_policies
from esp_gw.network.xfrm_policies import KernelPolicy, kernel_policies

# As a kernel 6.18 has dumped them: a bypass, a block, and a tunnel.
LIFETIMES = "ff" * 32 + "00" * 32 + "00" * 16 + "35cc0b6b00000000" + "00" * 8
TYPE = "0a0010000000000000000000"
BYPASS = (
    "00" * 16 + "0a090000" + "00" * 12 + "00" * 8 + "0200001000000000" + "00" * 8
    + LIFETIMES + "00000000" + "12000000" + "02000000" + "00000000" + TYPE
)  # fmt: skip
BLOCK = (
    "fd000002" + "00" * 12 + "fd000001" + "00" * 12 + "00" * 8 + "0a00404000000000" + "00" * 8
    + LIFETIMES + "00000000" + "08000000" + "00010000" + "00000000" + TYPE
)  # fmt: skip
TUNNEL = (
    "0a020000" + "00" * 12 + "0a010000" + "00" * 12 + "00" * 8 + "0200181800000000" + "00" * 8
    + LIFETIMES + "07000000" + "01000000" + "01000000" + "00000000"
    + "44000500" + "c0000202" + "00" * 12 + "0000000032000000" + "02000000" + "c0000201" + "00" * 12
    + "00000000" + "01000000" + "ff" * 12 + TYPE
)  # fmt: skip


def test_a_dump_is_read() -> None:
    found = list(xfrm_policies._read(bytes.fromhex(text) for text in (BYPASS, BLOCK, TUNNEL)))
    assert found == [
        KernelPolicy("in", ip_network("fd00:1::/64"), ip_network("fd00:2::/64"), True),
        KernelPolicy("out", ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24"), False),
    ]


@pytest.mark.parametrize("code", [errno.EPROTONOSUPPORT, errno.EOPNOTSUPP])
def test_a_kernel_without_ipsec_has_none(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse() -> socket.socket:
        raise OSError(code, "no")

    monkeypatch.setattr(xfrm_policies, "_open_socket", refuse)
    assert kernel_policies() == []
