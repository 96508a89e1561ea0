"""Arbitrary states and policies of a kernel: iproute2's output of them is parsed faithfully."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from esp_gw.errors import EspGwError
from esp_gw.model import SUITES, Direction, IPAddress, IPNetwork, KeyMaterial, Mode, Suite
from esp_gw.xfrm.parser import parse
from esp_gw.xfrm.records import (
    Dump,
    PolicyDirection,
    Template,
    UdpPorts,
    XfrmPolicy,
    XfrmSelector,
    XfrmState,
)
from tests.support.xfrm_print import NAMES, print_dump

u32 = st.integers(0, 2**32 - 1)
spis = st.integers(256, 2**32 - 1)
ports = st.integers(1, 65535)
versions = st.sampled_from([4, 6])


def addresses(version: int) -> st.SearchStrategy[IPAddress]:
    return st.ip_addresses(v=version)


def prefixes(version: int) -> st.SearchStrategy[IPNetwork]:
    longest = 32 if version == 4 else 128
    return st.builds(
        lambda address, length: ip_network((address, length), strict=False),
        addresses(version),
        st.integers(0, longest),
    )


@st.composite
def selectors(draw: st.DrawFn) -> XfrmSelector:
    version = draw(versions)
    protocol = draw(st.sampled_from([None, 2, 6, 17, 99, 132, *NAMES]))
    ends = st.none() | ports if protocol in (6, 17, 132) else st.none()
    return XfrmSelector(
        draw(prefixes(version)), draw(prefixes(version)), protocol, draw(ends), draw(ends)
    )


def key_of(suite: Suite) -> st.SearchStrategy[KeyMaterial]:
    size = suite.keymat_len
    keys = st.binary(min_size=size, max_size=size).filter(lambda key: any(key[:-4]))
    return keys.map(KeyMaterial.from_bytes)


@st.composite
def states(draw: st.DrawFn) -> XfrmState:
    version = draw(versions)
    suite = draw(st.sampled_from(list(SUITES.values())))
    esn = draw(st.booleans())
    seqs = st.integers(0, 2**64 - 1) if esn else u32
    return XfrmState(
        where="",
        src=draw(addresses(version)),
        dst=draw(addresses(version)),
        spi=draw(spis),
        reqid=draw(u32),
        mode=draw(st.sampled_from(Mode)),
        suite=suite,
        keymat=draw(key_of(suite)),
        esn=esn,
        window=draw(st.integers(0, 4096)),
        seq=draw(seqs),
        oseq=draw(seqs),
        udp=draw(st.none() | st.builds(UdpPorts, ports, ports)),
        selector=draw(st.none() | selectors()),
        direction=draw(st.none() | st.sampled_from(Direction)),
    )


@st.composite
def templates(draw: st.DrawFn) -> Template:
    version = draw(versions)
    return Template(
        draw(addresses(version)),
        draw(addresses(version)),
        draw(st.just(0) | spis),
        draw(u32),
        draw(st.sampled_from(Mode)),
    )


policies = st.builds(
    XfrmPolicy,
    where=st.just(""),
    selector=selectors(),
    direction=st.sampled_from(PolicyDirection),
    block=st.booleans(),
    priority=u32,
    template=st.none() | templates(),
).filter(lambda policy: policy.template or policy.block or policy.direction is PolicyDirection.OUT)
dumps = st.builds(
    Dump,
    st.lists(states(), max_size=3).map(tuple),
    st.lists(policies, max_size=3).map(tuple),
)


@settings(deadline=None)
@given(dumps, st.booleans())
def test_printed_dumps_are_parsed(dump: Dump, stats: bool) -> None:
    read = parse(print_dump(dump, stats=stats), "f")
    anywhere = Dump(
        tuple(dataclasses.replace(state, where="") for state in read.states),
        tuple(dataclasses.replace(policy, where="") for policy in read.policies),
    )
    assert anywhere == dump


@settings(deadline=None)
@given(dumps, st.booleans(), st.data())
def test_damaged_text_is_parsed_or_refused_and_no_error_shows_a_key(
    dump: Dump, stats: bool, data: st.DataObject
) -> None:
    text = print_dump(dump, stats=stats)
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(len(text), begin + 40)))
    middle = data.draw(st.text(max_size=8) | st.sampled_from(["\n", "\t", " ", "0x", "src "]))
    damaged = text[:begin] + middle + text[end:]
    try:
        parse(damaged, "f")
    except EspGwError as error:
        assert "\n" not in str(error)
        for state in dump.states:
            key = state.keymat.to_bytes().hex()
            assert not any(key[at : at + 16] in str(error) for at in range(len(key) - 15))


def test_the_unspecified_address_of_a_template_is_parsed() -> None:
    ends = ip_address("0.0.0.0")
    template = Template(ends, ends, 0, 1, Mode.TRANSPORT)
    host = ip_network("192.0.2.1/32")
    policy = XfrmPolicy("f:1", XfrmSelector(host, host), PolicyDirection.OUT, False, 0, template)
    assert parse(print_dump(Dump((), (policy,))), "f").policies == (policy,)
