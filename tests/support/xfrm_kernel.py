"""Model of a kernel that executes the lines of an `ip -batch`, with the grammar of iproute2."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from esp_gw.model import AES_GCM, SUITES, KeyMaterial, Mode
from esp_gw.xfrm.records import (
    Dump,
    PolicyDirection,
    Template,
    UdpPorts,
    XfrmPolicy,
    XfrmSelector,
    XfrmState,
)


def kernel_after(batch: str) -> Dump:
    """States and policies after `batch`; AssertionError for a line that would be refused."""
    states: dict[object, XfrmState] = {}
    policies: dict[object, XfrmPolicy] = {}
    for line in batch.splitlines():
        words = iter(line.split())
        command = (next(words), next(words), next(words))
        if command == ("xfrm", "state", "add"):
            state = _state(words)
            assert (state.dst, state.spi) not in states
            states[state.dst, state.spi] = state
        else:
            assert command == ("xfrm", "policy", "add")
            policy = _policy(words)
            assert (policy.selector, policy.direction) not in policies
            policies[policy.selector, policy.direction] = policy
    return Dump(tuple(states.values()), tuple(policies.values()))


def _state(words: Iterator[str]) -> XfrmState:
    values: dict[str, str] = {}
    flags: list[str] = []
    cipher = key = ""
    icv, udp = 0, None
    for word in words:
        if word == "aead":
            cipher, key, icv = next(words), next(words), int(next(words))
        elif word == "encap":
            assert next(words) == "espinudp"
            udp = UdpPorts(int(next(words)), int(next(words)))
            ip_address(next(words))
        elif word in ("esn", "af-unspec"):
            assert flags
            flags.append(word)
        elif word == "flag":
            flags.append("")
        else:
            values[word] = next(words)
    keymat = bytes.fromhex(key.removeprefix("0x"))
    (suite,) = (
        suite
        for suite in SUITES.values()
        if (suite.keymat_len, suite.icv_len * 8) == (len(keymat), icv)
        and (suite.cipher == AES_GCM) == (cipher == "rfc4106(gcm(aes))")
        and (suite.cipher == "aes-gmac") == (cipher == "rfc4543(gcm(aes))")
    )
    src, dst = ip_address(values["src"]), ip_address(values["dst"])
    window, esn = int(values["replay-window"]), "esn" in flags
    assert values["proto"] == "esp"
    assert 0 < window <= 4096
    assert esn or not any(name.endswith("-hi") for name in values)
    seq, oseq = (
        int(values.get(f"{name}-hi", "0"), 0) << 32 | int(values.get(name, "0"), 0)
        for name in ("replay-seq", "replay-oseq")
    )
    # Without a selector and the flag, the kernel uses the family of the outer addresses.
    whole = ip_network("0.0.0.0/0" if src.version == 4 else "::/0")
    return XfrmState(
        where="",
        src=src,
        dst=dst,
        spi=int(values["spi"], 0),
        reqid=int(values["reqid"]),
        mode=Mode(values["mode"]),
        suite=suite,
        keymat=KeyMaterial.from_bytes(keymat),
        esn=esn,
        window=window,
        seq=seq,
        oseq=oseq,
        udp=udp,
        selector=None if "af-unspec" in flags else XfrmSelector(whole, whole),
        direction=None,
    )


def _policy(words: Iterator[str]) -> XfrmPolicy:
    selector = _pairs(words, "tmpl")
    template = _pairs(words, "")
    ports = {end: int(selector[end]) for end in ("sport", "dport") if end in selector}
    assert not ports or selector.get("proto") in ("6", "17", "33", "132")
    assert template["proto"] == "esp"
    return XfrmPolicy(
        where="",
        selector=XfrmSelector(
            ip_network(selector["src"]),
            ip_network(selector["dst"]),
            int(selector["proto"]) if "proto" in selector else None,
            ports.get("sport"),
            ports.get("dport"),
        ),
        direction=PolicyDirection(selector["dir"]),
        block=False,
        priority=int(selector["priority"]),
        template=Template(
            ip_address(template["src"]),
            ip_address(template["dst"]),
            0,
            int(template["reqid"]),
            Mode(template["mode"]),
        ),
    )


def _pairs(words: Iterator[str], end: str) -> dict[str, str]:
    values = {}
    for word in words:
        if word == end:
            break
        values[word] = next(words)
    return values
