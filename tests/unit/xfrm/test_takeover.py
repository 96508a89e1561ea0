"""Conversion of the kernel's states and policies to SAs and policies of esp-gw."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_gw.errors import EspGwError
from esp_gw.model import Action, Direction, Encapsulation, PortRange, Selector
from esp_gw.xfrm.parser import join, parse
from esp_gw.xfrm.takeover import MARGIN, Takeover, take_over

VECTORS = Path(__file__).parents[2] / "vectors" / "xfrm"
STATES, POLICIES = ((VECTORS / f"{name}.txt").read_text() for name in ("state", "policy"))

OUT = """\
src 192.0.2.1 dst 192.0.2.2
	proto esp spi 0x00001001 reqid 7 mode tunnel
	replay-window 32 flag af-unspec
	aead rfc4106(gcm(aes)) 0x1111111111111111111111111111111111111111 128
	anti-replay context: seq 0x0, oseq 0x10, bitmap 0x00000000
"""
IN = """\
src 192.0.2.2 dst 192.0.2.1
	proto esp spi 0x00001002 reqid 7 mode tunnel
	replay-window 32 flag af-unspec
	aead rfc4106(gcm(aes)) 0x2222222222222222222222222222222222222222 128
	anti-replay context: seq 0x20, oseq 0x0, bitmap 0xffffffff
"""
POLICY_OUT = """\
src 10.1.0.0/24 dst 10.2.0.0/24
	dir out priority 100 ptype main
	tmpl src 192.0.2.1 dst 192.0.2.2
		proto esp reqid 7 mode tunnel
"""
POLICY_IN = """\
src 10.2.0.0/24 dst 10.1.0.0/24
	dir in priority 100 ptype main
	tmpl src 192.0.2.2 dst 192.0.2.1
		proto esp reqid 7 mode tunnel
"""
TUNNEL = (OUT, IN, POLICY_OUT, POLICY_IN)


def take(*blocks: str) -> Takeover:
    return take_over(join([parse(block, f"b{index}") for index, block in enumerate(blocks, 1)]))


def refused(*blocks: str) -> str:
    with pytest.raises(EspGwError) as caught:
        take(*blocks)
    assert "11111111" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_tunnel_becomes_two_sas_and_a_policy() -> None:
    found = take(*TUNNEL)
    out, in_ = (entry.to_sa() for entry in found.sas)
    assert (out.name, out.direction, out.spi) == ("xfrm-00001001/out", Direction.OUTBOUND, 0x1001)
    assert (in_.name, in_.direction, in_.spi) == ("xfrm-00001002/in", Direction.INBOUND, 0x1002)
    assert (out.pair, in_.pair) == (in_.name, out.name)
    for sa in (out, in_):
        assert (str(sa.local), str(sa.remote)) == ("192.0.2.1", "192.0.2.2")
        assert [(str(s.local), str(s.remote)) for s in sa.selectors] == [
            ("10.1.0.0/24", "10.2.0.0/24")
        ]
        assert sa.encapsulation is Encapsulation.NONE
    (policy,) = (entry.to_policy() for entry in found.policies)
    assert (policy.action, policy.sas, policy.selectors) == (
        Action.PROTECT,
        (out.name,),
        out.selectors,
    )


def test_the_sequence_numbers_continue_after_the_kernels_number_and_after_its_window() -> None:
    out, in_ = (entry.to_sa() for entry in take(*TUNNEL).sas)
    assert (out.used_seq, in_.used_seq) == (0x10 + MARGIN, 0x20)
    assert in_.replay_window == 64, "no smaller than the kernel's"


def test_a_whole_gateway_is_taken_over() -> None:
    found = take(STATES, POLICIES)
    sas = {entry.name: entry.to_sa() for entry in found.sas}
    assert len(sas) == 8
    assert found.port == 4500
    udp_out, udp_in = sas["xfrm-00002001/out"], sas["xfrm-00002002/in"]
    assert (udp_out.remote_port, udp_in.remote_port) == (4501, 4501)
    assert udp_in.used_seq == 2**32 + 0x30
    assert {str(selector.remote) for selector in udp_in.selectors} == {
        "10.3.0.0/24",
        "10.33.0.0/24",
    }
    web = Selector(
        *(
            sas["xfrm-00003001/out"].selectors[0].local,
            sas["xfrm-00003001/out"].selectors[0].remote,
        ),
        protocol=6,
        remote_port=PortRange(80, 80),
    )
    assert sas["xfrm-00003001/out"].selectors == sas["xfrm-00003002/in"].selectors == (web,)
    assert [(entry.name, entry.action, entry.sa) for entry in found.policies][:3] == [
        ("xfrm-00003001", Action.PROTECT, "xfrm-00003001/out"),
        ("xfrm-bypass", Action.BYPASS, None),
        ("xfrm-discard", Action.DISCARD, None),
    ], "in the order of their priorities: 0, 5, 6"
    assert [note.split(": ", 1)[0] for note in found.notes] == ["b1:1", "b1:44"]


def test_an_sa_with_esn_that_the_kernel_began_keeps_to_32_bits() -> None:
    """Only in this range is an IV of the kernel improbable (docs/explanation/safety.md)."""
    sas = {entry.name: entry.to_sa() for entry in take(STATES, POLICIES).sas}
    assert sas["xfrm-00002001/out"].esn
    assert sas["xfrm-00002001/out"].last_seq == 2**32 - 1


def test_two_peers_may_have_chosen_one_spi() -> None:
    def other(text: str) -> str:
        return (
            text.replace("192.0.2.2", "192.0.2.3")
            .replace("10.2.0.0", "10.3.0.0")
            .replace("0x11", "0x33")
            .replace("0x22", "0x44")
            .replace("00001002", "00001003")
        )

    names = [entry.name for entry in take(*TUNNEL, *map(other, TUNNEL)).sas]
    assert names == [
        "xfrm-00001001/out",
        "xfrm-00001002/in",
        "xfrm-00001001-2/out",
        "xfrm-00001003/in",
    ]


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ((OUT, IN), "b1:1: no policy uses the state"),
        ((POLICY_OUT,), "b1:1: no state fits the policy's template"),
        ((OUT, POLICY_OUT, POLICY_IN), "b3:1: no state fits"),
        (
            (OUT, OUT.replace("1001", "1009").replace("0x11", "0x33"), IN, POLICY_OUT, POLICY_IN),
            "b4:1: 2 states fit the policy's template (b1:1, b2:1)",
        ),
        (
            (OUT, IN.replace("22" * 20, "11" * 20), POLICY_OUT, POLICY_IN),
            "b2:1: has the same key as",
        ),
        (
            (OUT.replace("oseq 0x10", "oseq 0xfff00000"), IN, POLICY_OUT, POLICY_IN),
            "b1:1: the kernel has sent 4293918720 packets",
        ),
        (
            (OUT.replace("192.0.2.1", "192.0.2.2"), POLICY_OUT.replace("192.0.2.1", "192.0.2.2")),
            "b1:1: remote: is the same address as local",
        ),
        (
            (f"{OUT}\tdir in\n", IN, POLICY_OUT, POLICY_IN),
            "b1:1: the state is inbound, but its policies are outbound",
        ),
        (
            (f"{OUT}\tsel src 10.1.0.0/25 dst 0.0.0.0/0 \n", IN, POLICY_OUT, POLICY_IN),
            "b3:1: the policy matches more than the 'sel' of its state (b1:1)",
        ),
        (
            (
                OUT,
                IN,
                POLICY_OUT,
                POLICY_IN,
                POLICY_IN.replace("10.2.0", "10.4.0").replace("10.1.0", "10.5.0"),
            ),
            "b4:1: this policy and b5:1 use one SA for traffic that",
        ),
        (
            (*TUNNEL, "src 10.1.0.0/24 dst 10.2.0.0/16 \n\tdir out priority 100 ptype main \n"),
            "b5:1: the policy overlaps the one of b3:1, has the same priority",
        ),
        (
            (*TUNNEL, "src 10.1.0.0/24 dst 10.2.0.0/16 \n\tdir out priority 200 ptype main \n"),
            "b5:1: the bypass policy xfrm-bypass overlaps",
        ),
        (
            (*TUNNEL, (VECTORS / "refused-block-in.txt").read_text()),
            "b5:1: a policy 'dir in action block'",
        ),
        (
            (POLICY_OUT.replace("dir out", "dir out action block"),),
            "b1:1: a policy with a template",
        ),
        (("",), "there is no SA to import"),
    ],
)
def test_an_input_that_cannot_be_converted_is_refused_with_its_line(
    blocks: tuple[str, ...], expected: str
) -> None:
    assert refused(*blocks).startswith(expected)


def test_one_key_for_two_outbound_sas_is_refused() -> None:
    second = OUT.replace("192.0.2.2", "192.0.2.3").replace("reqid 7", "reqid 8")
    policy = (
        POLICY_OUT.replace("192.0.2.2", "192.0.2.3")
        .replace("reqid 7", "reqid 8")
        .replace("10.2.0", "10.3.0")
    )
    text = refused(*TUNNEL, second, policy)
    assert text.startswith("b5:1: has the same key as xfrm-00001001/out (two outbound)")


def test_two_local_udp_ports_are_refused() -> None:
    def udp(text: str, sport: int, dport: int) -> str:
        return f"{text}\tencap type espinudp sport {sport} dport {dport} addr 0.0.0.0\n"

    text = refused(udp(OUT, 4500, 4500), udp(IN, 4500, 4501), POLICY_OUT, POLICY_IN)
    assert text.startswith("b2:1: the local UDP port is 4501 here and 4500 in b1:1")
