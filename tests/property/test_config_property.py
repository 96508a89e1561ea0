"""Configurations and control requests from arbitrary input; selectors tried exhaustively."""

from __future__ import annotations

import itertools
import json
import random
import re
import tempfile
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from esp_gw.config.added import Store, StoredState, parse_policy_entry, parse_sa_entry
from esp_gw.config.conflicts import covers, overlap
from esp_gw.config.load import load_config
from esp_gw.config.provision import make_pair
from esp_gw.errors import ConfigError, ControlError
from esp_gw.model import PortRange, Selector

KEY = "5ec4e7" * 12
GOOD = f"""\
gateway:
  address: 10.1.0.1
  allow_inline_keys: true
policies:
  - {{name: ssh, action: bypass, remote_ts: 10.9.0.0/24, protocol: tcp, local_port: 22}}
tunnels:
  b:
    local: 192.0.2.1
    remote: 192.0.2.2
    local_ts: [10.1.0.0/24]
    remote_ts: [10.2.0.0/24, 10.3.0.0/24]
    suite: aes256gcm16
    outbound: {{spi: 0x1001, key: {{inline: {KEY}}}}}
    inbound: {{spi: 4098, key: {{inline: {KEY[::-1]}}}}}
"""
LINES = GOOD.splitlines()


def outcome(content: bytes) -> list[str]:
    """Load bytes as a configuration; return its problems. Nothing else may be raised."""
    # YAML 1.1 5.4 has five line breaks.
    breaks = len(re.findall("[\r\n\x85\u2028\u2029]", content.decode(errors="replace")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gw.yaml"
        path.write_bytes(content)
        try:
            load_config(path)
        except ConfigError as error:
            found = [str(problem) for problem in error.problems]
            assert found
            for problem in error.problems:
                assert problem.file == str(path)
                assert 0 <= problem.line <= breaks + 1
            for text in found:
                assert len(text.splitlines()) == 1
                assert text.isprintable()
                assert KEY[:12] not in text
                assert KEY[::-1][:12] not in text
                assert "pydantic" not in text
                assert "not understood" not in text
            return found
    return []


def test_the_starting_point_is_valid() -> None:
    assert outcome(GOOD.encode()) == []


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
@example(b"\x85")
@example("\u2028: 1\u2028".encode())
@example(b'"\\ud800": 1')
@example(b'tunnels: {"\\n": {"\\x00": 1}}')
def test_any_bytes_load_or_yield_plain_problems(content: bytes) -> None:
    outcome(content)


WORDS = st.one_of(
    st.sampled_from(
        [
            *(
                "",
                "~",
                "null",
                "[]",
                "{}",
                "[[]]",
                "{a: {}}",
                "-1",
                "1e9",
                "on",
                "0x",
                "2026-13-45",
            ),
            *("10.0.0.1/8", "::/0", "::1", "fe80::1%1", "'\\n'", '"\\0"', KEY, f"{{{KEY}}}", "'*'"),
        ]
    ),
    st.text(max_size=12),
    st.integers(-(2**70), 2**70).map(str),
)


@settings(max_examples=250, deadline=None)
@given(st.integers(0, len(LINES) - 1), WORDS, st.randoms(use_true_random=False))
def test_a_changed_value_is_valid_or_a_plain_problem(
    index: int, word: str, rng: random.Random
) -> None:
    places = [*re.finditer(r"[^\s{}\[\],:]+", LINES[index])]
    place = rng.choice(places)
    line = LINES[index][: place.start()] + word + LINES[index][place.end() :]
    outcome("\n".join([*LINES[:index], line, *LINES[index + 1 :]]).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)
SA: dict[str, Any] = {
    "name": "b/out",
    "direction": "outbound",
    "spi": 4097,
    "key": KEY,
    "local": "192.0.2.1",
    "remote": "192.0.2.2",
    "local_ts": ["10.1.0.0/24"],
    "remote_ts": ["10.2.0.0/24"],
}
SA_FIELDS = [*SA, "mode", "encapsulation", "suite", "esn", "replay_window", "keepalive", "liveness"]
SA_FIELDS += ["remote_port", "protocol", "local_ts_port", "remote_ts_port", "pair", "other"]
POLICY: dict[str, Any] = {"name": "p", "action": "discard", "remote_ts": "10.2.0.0/24"}


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(SA_FIELDS), JSON, min_size=1, max_size=3))
def test_any_json_is_an_sa_that_can_be_stored_or_an_invalid_parameter(
    changes: dict[str, Any],
) -> None:
    try:
        entry = parse_sa_entry({**SA, **changes})
    except ControlError as error:
        assert error.code == "InvalidParameter"
        assert str(error).isprintable()
        assert KEY[:12] not in str(error)
        return
    entry.to_sa()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "cli.json")
        store.save(StoredState(sas=(entry,)))
        assert store.load().sas == (entry,)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*POLICY, "local_ts", "protocol", "local_port", "remote_port", "sa", "x"]),
        JSON,
        min_size=1,
        max_size=3,
    )
)
def test_any_json_is_a_policy_or_an_invalid_parameter(changes: dict[str, Any]) -> None:
    try:
        parse_policy_entry({**POLICY, **changes}).to_policy()
    except ControlError as error:
        assert error.code == "InvalidParameter"
        assert str(error).isprintable()


# A space small enough to try every packet: 4 addresses per side, 3 protocols, 4 ports.
NETS = [
    network
    for length in (30, 31, 32)
    for network in ip_network("10.0.0.0/30").subnets(new_prefix=length)
]
PORTS = st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3)).map(
    lambda pair: PortRange(min(pair), max(pair))
)
SELECTORS = st.builds(
    Selector,
    st.sampled_from(NETS),
    st.sampled_from(NETS),
    st.sampled_from([None, 1, 6, 17]),
    PORTS,
    PORTS,
)
ADDRESSES = [ip_address("10.0.0.0") + i for i in range(4)]
PACKETS = [
    (local, remote, protocol, ports)
    for local, remote in itertools.product(ADDRESSES, ADDRESSES)
    for protocol in (1, 6, 17)
    for ports in ([None] if protocol == 1 else [None, *itertools.product(range(4), range(4))])
]


def matches(selector: Selector, packet: tuple[Any, Any, int, tuple[int, int] | None]) -> bool:
    local, remote, protocol, ports = packet
    assert isinstance(selector.local, IPv4Network)
    if local not in selector.local or remote not in selector.remote:
        return False
    if selector.protocol not in (None, protocol):
        return False
    for index, wanted in enumerate((selector.local_port, selector.remote_port)):
        if wanted is not None and (
            ports is None or not wanted.first <= ports[index] <= wanted.last
        ):
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(SELECTORS, SELECTORS)
def test_overlap_and_cover_agree_with_every_packet_tried(one: Selector, other: Selector) -> None:
    first = {packet for packet in PACKETS if matches(one, packet)}
    second = {packet for packet in PACKETS if matches(other, packet)}
    if first and second:
        assert overlap(one, other) is bool(first & second)
    if covers(one, other):
        assert second <= first


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["port", "table", "fwmark"]), st.integers(256, 32_000)))
def test_settings_of_a_side_are_written(values: dict[str, int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pair = make_pair(
            Path(folder) / "out",
            local=ip_address("192.0.2.1"),
            remote=ip_address("192.0.2.2"),
            local_nets=[ip_network("10.1.0.0/24")],
            remote_nets=[ip_network("10.2.0.0/24")],
            local_settings=values,
        )
        loaded = load_config(pair.local).settings
        assert {name: getattr(loaded, name) for name in values} == values
        # Other YAML parsers read the same.
        text = yaml.safe_load(pair.local.read_text())
        assert {name: text["gateway"][name] for name in values} == values
        json.dumps(text)
