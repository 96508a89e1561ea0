"""An export applied to a kernel and imported back: the result is the other end."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from esp_gw.config.conflicts import find_conflicts
from esp_gw.errors import EspGwError
from esp_gw.model import (
    SUITES,
    Direction,
    Encapsulation,
    KeyMaterial,
    Mode,
    Policy,
    PortRange,
    Sa,
    Selector,
)
from esp_gw.xfrm import takeover
from esp_gw.xfrm.commands import MARGIN, batch
from esp_gw.xfrm.parser import parse
from tests.support.builders import mirrored, protect
from tests.support.xfrm_kernel import kernel_after
from tests.support.xfrm_print import print_dump

OUTER = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}


@st.composite
def tunnels(draw: st.DrawFn, number: int) -> tuple[Sa, Sa, Policy]:
    """One tunnel: its two SAs and its policy, made unique by `number`."""
    outer = draw(st.sampled_from([4, 6]))
    inner = draw(st.sampled_from([4, 6]))
    mode = Mode.TRANSPORT if number == 0 and draw(st.booleans()) else Mode.TUNNEL
    suite = draw(st.sampled_from(list(SUITES.values())))
    protocol = draw(st.sampled_from([None, 6, 17, 47]))
    ports = st.none() | st.integers(1, 65535).map(lambda port: PortRange(port, port))
    local, remote = map(ip_address, OUTER[outer])
    if mode is Mode.TRANSPORT:
        pairs = [(ip_network(local), ip_network(remote))]
    else:
        base = f"10.{number}" if inner == 4 else f"fd00:{number}"
        pairs = [
            (ip_network(f"{base}.0.0/24"), ip_network(f"{base}.{net}.0/24"))
            if inner == 4
            else (ip_network(f"{base}::/64"), ip_network(f"{base}:{net}::/64"))
            for net in range(1, draw(st.integers(2, 4)))
        ]
    local_port, remote_port = (draw(ports) if protocol in (6, 17) else None for _ in range(2))
    selectors = tuple(
        Selector(ours, theirs, protocol, local_port, remote_port) for ours, theirs in pairs
    )
    encapsulation = draw(st.sampled_from(Encapsulation))
    udp_port = draw(st.integers(1, 65535)) if encapsulation is Encapsulation.UDP else 4500
    esn = draw(st.booleans())
    window = 64 * draw(st.integers(1, 64))
    out, in_ = (
        Sa(
            name=f"t{number}/{end}",
            direction=direction,
            spi=0x1000 + 2 * number + (direction is Direction.INBOUND),
            suite=suite,
            keymat=KeyMaterial(bytes([2 * number + byte]) * suite.key_len, b"salt"),
            mode=mode,
            encapsulation=encapsulation,
            local=local,
            remote=remote,
            selectors=selectors,
            remote_port=udp_port,
            esn=esn,
            replay_window=window,
            keepalive=20 if direction is Direction.OUTBOUND else 0,
            pair=f"t{number}/{other}",
        )
        for direction, end, other, byte in (
            (Direction.OUTBOUND, "out", "in", 1),
            (Direction.INBOUND, "in", "out", 2),
        )
    )
    return out, in_, protect(f"t{number}", out.name, *selectors)


@st.composite
def gateways(draw: st.DrawFn) -> tuple[list[Sa], list[Policy]]:
    found = [draw(tunnels(number)) for number in range(draw(st.integers(1, 3)))]
    return [sa for out, in_, _ in found for sa in (out, in_)], [policy for *_, policy in found]


seqs = st.integers(0, 2**32 - 2**22)


@settings(deadline=None)
@given(gateways(), st.data(), st.booleans())
def test_an_imported_export_is_the_other_end(
    gateway: tuple[list[Sa], list[Policy]], data: st.DataObject, stats: bool
) -> None:
    sas, policies = gateway
    assume(not find_conflicts(sas, policies))
    # The remote port becomes the local port of the other end, and a gateway has only one.
    assume(len({sa.remote_port for sa in sas if sa.encapsulation is Encapsulation.UDP}) <= 1)
    used = {sa.name: data.draw(seqs) for sa in sas}
    there = kernel_after(batch(sas, policies, used, 4500))
    found = takeover.take_over(parse(print_dump(there, stats=stats), "f"))

    ours = {sa.spi: sa for sa in sas}
    assert len(found.sas) == len(sas)
    for sa in (entry.to_sa() for entry in found.sas):
        mirror = ours[sa.spi]
        assert sa.direction is not mirror.direction
        assert sa.keymat == mirror.keymat
        assert (sa.suite, sa.mode, sa.esn) == (mirror.suite, mirror.mode, mirror.esn)
        assert (sa.local, sa.remote) == (mirror.remote, mirror.local)
        assert sa.encapsulation is mirror.encapsulation
        assert sa.remote_port == 4500
        assert set(sa.selectors) == set(mirrored(mirror.selectors))
        assert sa.replay_window == mirror.replay_window
        seq = used[mirror.name]
        if sa.direction is Direction.INBOUND:
            assert sa.used_seq == (seq + sa.replay_window if seq else 0)
        else:
            assert sa.used_seq == takeover.MARGIN + (seq + MARGIN if seq else 0)
        (partner,) = (other for other in found.sas if other.name == sa.pair)
        assert ours[partner.spi].name == mirror.pair
    protected = {selector for entry in found.policies for selector in entry.to_policy().selectors}
    assert protected == {s for policy in policies for s in mirrored(policy.selectors)}


@pytest.mark.parametrize("ports", [PortRange(1000, 2000), PortRange(0, 0)])
def test_ports_that_ip_xfrm_cannot_express_are_refused(ports: PortRange) -> None:
    selector = Selector(ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24"), 6, ports)
    (out, in_, _) = _plain(selector)
    with pytest.raises(EspGwError, match="can't express the ports") as caught:
        batch([out, in_], [protect("p", out.name, selector)], {})
    assert caught.value.where == "p"


def test_nearly_exhausted_sequence_numbers_are_refused() -> None:
    out, in_, selector = _plain(Selector(ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24")))
    for name in (out.name, in_.name):
        with pytest.raises(EspGwError, match="nearly used up"):
            batch([out, in_], [protect("p", out.name, selector)], {name: 2**32 - 5})


def _plain(selector: Selector) -> tuple[Sa, Sa, Selector]:
    from tests.support.builders import make_sa

    out = make_sa("t/out", Direction.OUTBOUND, 0x1001, selector, esn=False)
    return out, make_sa("t/in", Direction.INBOUND, 0x1002, selector, esn=False), selector
