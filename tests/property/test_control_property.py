"""The request decoder against a plain model: lines split at newlines, each parsed on its own."""

from __future__ import annotations

import json
from itertools import pairwise
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from esp_gw.control import protocol
from esp_gw.control.protocol import Request, RequestDecoder
from esp_gw.errors import ControlError

Outcome = tuple[list[Request], bool]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
requests = st.builds(Request, names, st.dictionaries(names, values, max_size=3))
junk = st.one_of(
    st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")),
    st.sampled_from([b"{", b"[]", b"1", b'{"method":1}', b'{"method":"m","x":1}', b"\xff", b"NaN"]),
)


def encoded(request: Request) -> bytes:
    message = {"method": request.method, "parameters": request.parameters}
    return json.dumps(message, ensure_ascii=False).encode()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def decode(pieces: list[bytes]) -> Outcome:
    """Requests in order, and True if a protocol error ended them."""
    decoder = RequestDecoder()
    found: list[Request] = []
    try:
        for piece in pieces:
            decoder.receive_data(piece)
            while (request := decoder.next_request()) is not None:
                found.append(request)
    except ControlError as error:
        assert error.code == "InvalidParameter"
        return found, True
    return found, False


@settings(max_examples=150)
@given(st.lists(requests, max_size=4), st.lists(st.integers(0, 10**6), max_size=8))
def test_requests_are_decoded_from_any_pieces(wanted: list[Request], places: list[int]) -> None:
    data = b"".join(encoded(request) + b"\n" for request in wanted)
    assert decode(cut(data, places)) == (wanted, False)


@settings(max_examples=200)
@given(
    st.lists(st.one_of(requests.map(encoded), junk), max_size=5),
    st.booleans(),
    st.lists(st.integers(0, 10**6), max_size=8),
)
@example([b"x" * 200, b'{"method":"m"}'], True, list(range(200)))
def test_pieces_never_change_the_outcome_even_for_junk(
    lines: list[bytes], ended: bool, places: list[int]
) -> None:
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    # A short limit, so that overlong lines occur often, whole and in pieces.
    with mock.patch.object(protocol, "MAX_REQUEST", 120):
        outcome = decode([data])
        assert decode(cut(data, places)) == outcome
        assert decode([bytes([byte]) for byte in data]) == outcome


@settings(max_examples=200)
@given(st.lists(requests, max_size=3), junk, st.lists(requests, min_size=1, max_size=2))
def test_all_requests_before_the_first_junk_line_are_returned_and_none_after(
    before: list[Request], bad: bytes, after: list[Request]
) -> None:
    data = b"".join(encoded(r) + b"\n" for r in before) + bad + b"\n"
    data += b"".join(encoded(r) + b"\n" for r in after)
    assert decode([data]) == (before, True)


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=300), max_size=6))
def test_arbitrary_bytes_yield_requests_or_a_protocol_error_and_nothing_else(
    pieces: list[bytes],
) -> None:
    decode(pieces)


@settings(max_examples=100)
@given(st.dictionaries(names, values, max_size=4))
def test_answers_survive_the_wire(parameters: dict[str, object]) -> None:
    line = protocol.encode_reply(parameters)
    assert line.index(b"\n") == len(line) - 1
    assert protocol.decode_reply(line) == parameters
