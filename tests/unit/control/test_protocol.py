"""The codec of the control protocol: valid and malformed requests, and replies."""

from __future__ import annotations

import json

import pytest

from esp_gw.control.protocol import (
    MAX_REQUEST,
    Request,
    RequestDecoder,
    decode_reply,
    encode_error,
    encode_reply,
    encode_request,
)
from esp_gw.errors import ControlError


def decode_one(data: bytes) -> Request | None:
    decoder = RequestDecoder()
    decoder.receive_data(data)
    return decoder.next_request()


def test_a_request_is_a_method_and_its_parameters() -> None:
    line = b'{"method":"io.esp_gw.GetSa","parameters":{"name":"a","n":[1,2.5,null,true]}}\n'
    expected = Request("io.esp_gw.GetSa", {"name": "a", "n": [1, 2.5, None, True]})
    assert decode_one(line) == expected


def test_parameters_may_be_left_out() -> None:
    assert decode_one(b'{"method":"io.esp_gw.ListSas"}\r\n') == Request("io.esp_gw.ListSas", {})


def test_the_client_encodes_requests_in_the_documented_shape() -> None:
    line = encode_request("GetSa", {"name": "gr\u00fcn"})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"method": "io.esp_gw.GetSa", "parameters": {"name": "gr\u00fcn"}}
    assert decode_one(line) == Request("io.esp_gw.GetSa", {"name": "gr\u00fcn"})


def test_a_partial_request_is_not_yet_a_request() -> None:
    decoder = RequestDecoder()
    decoder.receive_data(b'{"method":')
    assert decoder.next_request() is None
    decoder.receive_data(b'"m"}\n{"meth')
    assert decoder.next_request() == Request("m", {})
    assert decoder.next_request() is None


def test_a_key_in_the_parameters_is_not_in_the_repr() -> None:
    request = Request("io.esp_gw.AddSa", {"key": "00112233445566778899"})
    assert "00112233445566778899" not in repr(request)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "not JSON"),
        (b"hello", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"method"', "not a JSON object"),
        (b"{}", "method is missing"),
        (b'{"method":7}', "method is not a string"),
        (b'{"method":null}', "method is not a string"),
        (b'{"method":"m","parameters":[]}', "parameters is not an object"),
        (b'{"method":"m","parameters":null}', "parameters is not an object"),
        (b'{"method":"m","oneway":true}', "member other than"),
        (b'{"method":"\xff"}', "not UTF-8"),
        (b'{"method":"m","parameters":{"a":"\\ud800"}}', "not Unicode"),
        (b'{"method":"m","parameters":{"a":NaN}}', "NaN is not"),
        (b'{"method":"m","parameters":{"a":-Infinity}}', "-Infinity is not"),
        (b'{"method":"m","parameters":{"a":1e999}}', "number is too large"),
        (b'{"method":"m","parameters":{"a":' + b"9" * 5000 + b"}}", "number is too large"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 40_000, "nested too deeply"),
        (b'{"method":"m"} {"method":"n"}', "not JSON"),
        (b'{"method":"a\x00b"}', "not JSON"),
    ],
)
def test_a_malformed_request_is_reported_with_its_fault(line: bytes, says: str) -> None:
    with pytest.raises(ControlError, match=says) as caught:
        decode_one(line + b"\n")
    assert caught.value.code == "InvalidParameter"


@pytest.mark.parametrize("text", [b'"a"', b'"\\u0061"'])
def test_no_depth_of_nesting_is_a_crash(text: bytes) -> None:
    for depth in (*range(50, 1100, 7), 5000):
        line = b'{"method":"m","parameters":{"a":' + b"[" * depth + text + b"]" * depth + b"}}\n"
        try:
            assert decode_one(line) is not None
        except ControlError as error:
            assert "nested too deeply" in error.what


def test_the_error_for_broken_json_quotes_nothing_of_it() -> None:
    with pytest.raises(ControlError) as caught:
        decode_one(b'{"method":"m","parameters":{"key":"00112233445566778899"}\n')
    assert "0011" not in str(caught.value)


def test_requests_before_a_protocol_error_are_returned_and_none_after_it() -> None:
    decoder = RequestDecoder()
    decoder.receive_data(b'{"method":"a"}\n}\n{"method":"b"}\n')
    assert decoder.next_request() == Request("a", {})
    for _ in range(2):
        with pytest.raises(ControlError, match="not JSON"):
            decoder.next_request()
        decoder.receive_data(b'{"method":"c"}\n')


def request_of_length(length: int) -> bytes:
    frame = b'{"method":"m","parameters":{"a":""}}'
    return frame.replace(b'""', b'"' + b"x" * (length - len(frame)) + b'"')


def test_the_longest_request_is_accepted_and_one_byte_more_is_not() -> None:
    assert len(request_of_length(MAX_REQUEST)) == MAX_REQUEST
    assert decode_one(request_of_length(MAX_REQUEST) + b"\n") is not None
    with pytest.raises(ControlError, match="longer than 262144 bytes"):
        decode_one(request_of_length(MAX_REQUEST + 1) + b"\n")


def test_a_line_without_end_is_an_error_as_soon_as_it_is_too_long() -> None:
    decoder = RequestDecoder()
    decoder.receive_data(b"x" * MAX_REQUEST)
    assert decoder.next_request() is None
    decoder.receive_data(b"x")
    with pytest.raises(ControlError, match="longer than"):
        decoder.next_request()


def test_an_answer_is_one_line_with_its_parameters() -> None:
    line = encode_reply({"text": "a\nb\u2028c"})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"parameters": {"text": "a\nb\u2028c"}}
    assert decode_reply(line) == {"text": "a\nb\u2028c"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"\x00", object()])
def test_an_answer_that_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode_reply({"value": value})


@pytest.mark.parametrize("hint", [None, "see 'esp-gw sa list'"])
def test_an_error_keeps_its_code_text_and_hint(hint: str | None) -> None:
    line = encode_error(ControlError("NotFound", "no SA 'a'", hint=hint))
    parameters = {"message": "no SA 'a'"} | ({"hint": hint} if hint else {})
    assert json.loads(line) == {"error": "io.esp_gw.NotFound", "parameters": parameters}
    with pytest.raises(ControlError) as caught:
        decode_reply(line)
    assert (caught.value.code, caught.value.what, caught.value.hint) == (
        "NotFound",
        "no SA 'a'",
        hint,
    )


@pytest.mark.parametrize(
    "line", [b"", b"SSH-2.0-OpenSSH", b"[]", b'{"parameters":[]}', b'{"parameters":{"a":NaN}}']
)
def test_a_malformed_answer_is_an_internal_error(line: bytes) -> None:
    with pytest.raises(ControlError, match="can't be read") as caught:
        decode_reply(line)
    assert caught.value.code == "Internal"


def test_a_foreign_error_without_text_is_still_an_error() -> None:
    with pytest.raises(ControlError) as caught:
        decode_reply(b'{"error":"org.varlink.service.MethodNotFound"}')
    assert caught.value.code == "org.varlink.service.MethodNotFound"
