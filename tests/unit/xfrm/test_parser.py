"""Output of iproute2 6.1 on a kernel 6.1 (tests/vectors/xfrm), and variants of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from esp_gw.errors import EspGwError
from esp_gw.model import SUITES, Direction, Mode
from esp_gw.xfrm.parser import join, parse
from esp_gw.xfrm.records import (
    PolicyDirection,
    Template,
    UdpPorts,
    XfrmPolicy,
    XfrmSelector,
    XfrmState,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "xfrm"
EVERYTHING = XfrmSelector(ip_network("0.0.0.0/0"), ip_network("0.0.0.0/0"))


def printed(name: str) -> str:
    return (VECTORS / f"{name}.txt").read_text()


def anywhere(record: XfrmState | XfrmPolicy) -> XfrmState | XfrmPolicy:
    return dataclasses.replace(record, where="")


@pytest.mark.parametrize("kind", ["state", "policy"])
def test_statistics_change_nothing(kind: str) -> None:
    plain, stats = parse(printed(kind), "a"), parse(printed(f"{kind}-s"), "b")
    assert len(plain.states) + len(plain.policies) in (8, 13)
    assert [*map(anywhere, plain.states)] == [*map(anywhere, stats.states)]
    assert [*map(anywhere, plain.policies)] == [*map(anywhere, stats.policies)]


def test_a_state_without_esn_is_read_completely() -> None:
    state = {state.spi: state for state in parse(printed("state"), "f").states}[0x1001]
    assert state.keymat.to_bytes() == b"\x11" * 36
    assert anywhere(state) == XfrmState(
        where="",
        src=ip_address("192.0.2.1"),
        dst=ip_address("192.0.2.2"),
        spi=0x1001,
        reqid=7,
        mode=Mode.TUNNEL,
        suite=SUITES["aes256gcm16"],
        keymat=state.keymat,
        esn=False,
        window=32,
        seq=0,
        oseq=0x1234,
        udp=None,
        selector=EVERYTHING,
        direction=None,
    )


def test_a_state_with_esn_in_udp_is_read_completely() -> None:
    state = {state.spi: state for state in parse(printed("state"), "f").states}[0x2002]
    assert (state.suite.name, state.esn, state.window) == ("aes192gcm12", True, 2048)
    assert (state.seq, state.oseq) == (2**32 + 0x30, 0)
    assert state.udp == UdpPorts(4501, 4500)


def test_a_window_over_32_without_esn_is_not_taken_for_esn() -> None:
    state = {state.spi: state for state in parse(printed("state"), "f").states}[0x3002]
    assert (state.esn, state.window, state.mode) == (False, 64, Mode.TRANSPORT)
    assert (state.suite.name, state.selector) == ("chacha20poly1305", None)


def test_policies_are_read_completely() -> None:
    policies = parse(printed("policy"), "f").policies
    ends = (ip_address("192.0.2.2"), ip_address("192.0.2.1"))
    assert policies[-1].where == "f:45"
    assert anywhere(policies[-2]) == XfrmPolicy(
        where="",
        selector=XfrmSelector(ip_network("10.2.0.0/24"), ip_network("10.1.0.0/24")),
        direction=PolicyDirection.IN,
        block=False,
        priority=100,
        template=Template(*ends, 0, 7, Mode.TUNNEL),
    )
    assert [(p.block, p.priority) for p in policies if p.template is None] == [
        (True, 6),
        (False, 5),
    ]


def test_a_direction_that_the_kernel_was_given_is_read() -> None:
    text = printed("state").replace("\tsel src ::/0", "\tdir out\n\tsel src ::/0")
    states = parse(text, "f").states
    assert {state.direction for state in states} == {None, Direction.OUTBOUND}


REFUSED = {
    "ah": "2: protocol 'ah'",
    "beet": "2: mode 'beet'",
    "cbc": "4: the algorithm 'hmac(sha256)'",
    "comp": "2: protocol 'comp'",
    "dev": "1: a selector with 'dev'",
    "extra-flag": "3: the flag",
    "icmp-type": "1: a selector with 'type'",
    "if_id": "6: an interface ID",
    "level": "5: a template that is not required",
    "lifetime": "10: a finite lifetime",
    "mark": "4: a mark",
    "noecn": "3: the flag 'noecn'",
    "nokeys": "4: the keys are hidden",
    "output-mark": "4: a mark",
    "policy-icmp": "2: the flag 'icmp'",
    "policy-lifetime": "5: a finite lifetime",
    "policy-mark": "3: a mark",
    "two-templates": "5: a policy with two templates",
}


def test_every_capture_of_a_refused_feature_has_its_test() -> None:
    found = {path.stem.removeprefix("refused-") for path in VECTORS.glob("refused-*.txt")}
    assert found == {*REFUSED, "block-in"}, "block-in is refused by takeover"


@pytest.mark.parametrize(("name", "text"), REFUSED.items())
def test_a_feature_only_the_kernel_has_is_refused_with_its_line(name: str, text: str) -> None:
    with pytest.raises(EspGwError) as caught:
        parse(printed(f"refused-{name}"), "in.txt")
    assert str(caught.value).startswith(f"in.txt:{text}")


def edited(old: str, new: str) -> Callable[[], str]:
    def change() -> str:
        text = printed("state")
        assert old in text
        return text.replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (edited("\tproto esp", "\tproto ah"), ":2: protocol 'ah'"),
        (edited("rfc4106(gcm(aes))", "rfc4309(ccm(aes))"), ":4: the algorithm 'rfc4309(ccm(aes))'"),
        (edited("18" * 36, "18" * 35), ":4: the algorithm 'rfc4106(gcm(aes))' with 280 bits"),
        (edited("18" * 36, "00" * 32 + "01020304"), ":4: the key is zero"),
        (edited("18" * 36 + " 128", "18" * 30), ":4: the line is incomplete"),
        (edited("\tanti-replay context: seq 0x0, oseq 0x0, bitmap 0x00000000\n", ""), "sequence"),
        (edited("espinudp", "espintcp"), "encapsulation 'espintcp'"),
        (edited("sport 4501", "sport 0"), "a UDP port is missing"),
        (edited("\tsel", "\tcoa fd00::9\n\tsel"), ":6: coa"),
        (edited("\tsel", "\tpcpu-num 3\n\tsel"), ":6: pcpu-num"),
        (
            edited("\tsel", "\tcrypto offload parameters: dev eth0 dir in mode packet\n\tsel"),
            "card",
        ),
        (edited("\tsel", "\tsecurity context system_u \n\tsel"), ":6: a security context"),
        (edited("\tsel", "\tfuture thing\n\tsel"), ":6: a line that begins with 'future'"),
        (edited("\treplay-window 0", "\treplay-window x"), ":3: expected a number"),
        (edited("spi 0x00004002", "spi 0x00000007"), ":2: the reserved SPI 7"),
        (lambda: "\tproto esp\n", ":1: the beginning is missing"),
        (lambda: "hello world\n", ":1: a line that begins with 'hello'"),
        (lambda: "src fd00::1 dst fd00::2 \n", ":1: the state has no line 'proto'"),
        (lambda: "src 10.0.0.0/8 dst 10.0.0.0/8\n", ":1: the policy has no line 'dir'"),
    ],
)
def test_a_line_that_is_refused_is_named(text: Callable[[], str], expected: str) -> None:
    with pytest.raises(EspGwError) as caught:
        parse(text(), "in.txt")
    assert str(caught.value).startswith("in.txt:")
    assert expected in str(caught.value)


def test_no_error_holds_a_key_whatever_is_wrong_with_its_line() -> None:
    """The key is put before and in place of every word of a state, in several spellings."""
    text = "".join(printed("state").splitlines(keepends=True)[:6])
    key = "0x" + "18" * 36
    words = text.split()
    assert key in words
    faults = 0
    for index in range(len(words)):
        for new in (f"{key} {words[index]}", key, f"0x{key}", key[2:], f"{key},"):
            changed = text.replace("\n", " \n ").split(" ")
            place = [i for i, word in enumerate(changed) if word.strip()][index]
            changed[place] = new
            try:
                parse(" ".join(changed).replace(" \n \t", "\n\t"), "in.txt")
            except EspGwError as error:
                faults += 1
                assert "18" * 4 not in str(error)
    assert faults > len(words)


def test_a_socket_policy_is_ignored() -> None:
    text = "src 0.0.0.0/0 dst 0.0.0.0/0 \n\tsocket in priority 0 ptype main \n"
    assert parse(text, "f").policies == ()


def test_an_inbound_policy_without_an_sa_is_ignored() -> None:
    text = "src ::/0 dst ::/0 proto ipv6-icmp type 135 \n\tdir {} {}priority 0 ptype main \n"
    assert parse(text.format("in", "") + text.format("fwd", ""), "f").policies == ()
    for refused in (("out", ""), ("in", "action block ")):
        with pytest.raises(EspGwError, match=r"^f:1: a selector with 'type'"):
            parse(text.format(*refused), "f")


def test_one_output_given_twice_is_refused() -> None:
    with pytest.raises(EspGwError, match=r"^b:1: is also in a:1"):
        join([parse(printed("state"), "a"), parse(printed("state-s"), "b")])
