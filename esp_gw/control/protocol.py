"""The control protocol as a sans-IO codec: JSON lines in the shape of varlink messages.

A request is `{"method": "io.esp_gw.ListSas", "parameters": {...}}`. Its reply is `{"parameters":
{...}}` or `{"error": "io.esp_gw.NotFound", "parameters": {"message": "...", "hint": "..."}}`.
One message is one line of UTF-8, and replies arrive in the order of their requests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from esp_gw.errors import ControlError

INTERFACE = "io.esp_gw"
PREFIX = INTERFACE + "."
MAX_REQUEST = 256 * 1024
"""Longest accepted request in bytes, without its line end."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `method` with the interface prefix, and `parameters`, which may hold a key."""

    method: str
    parameters: dict[str, object] = field(repr=False)


class RequestDecoder:
    """Decodes the byte stream of one connection into requests, in chunks of any size.

    Buffers at most one request and the data of the last `receive_data`. A protocol error is final:
    the start of the next request is no longer known.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._error: ControlError | None = None

    def receive_data(self, data: bytes) -> None:
        """Add bytes received from the socket."""
        if self._error is None:
            self._buffer += data

    def next_request(self) -> Request | None:
        """The next complete request, or None if more bytes are needed.

        Raises ControlError (InvalidParameter) for a malformed request, and on every later call.
        """
        if self._error is not None:
            raise self._error
        try:
            line = self._next_line()
            return None if line is None else _request_from(line)
        except ValueError as error:
            self._error = ControlError("InvalidParameter", f"malformed request: {error}")
            self._buffer.clear()
            raise self._error from None

    def _next_line(self) -> bytes | None:
        end = self._buffer.find(b"\n", self._searched)
        if (len(self._buffer) if end < 0 else end) > MAX_REQUEST:
            raise ValueError(f"longer than {MAX_REQUEST} bytes")
        if end < 0:
            self._searched = len(self._buffer)
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line


def encode_request(method: str, parameters: Mapping[str, object]) -> bytes:
    """Encode a request as one line; `method` is without the interface prefix."""
    return _encode({"method": PREFIX + method, "parameters": parameters})


def encode_reply(parameters: Mapping[str, object]) -> bytes:
    """Encode a success reply as one line. Raises TypeError or ValueError for non-JSON values."""
    return _encode({"parameters": parameters})


def encode_continued(parameters: Mapping[str, object]) -> bytes:
    """Encode a success reply that others follow, as one line, in varlink's way."""
    return _encode({"continues": True, "parameters": parameters})


def encode_error(error: ControlError) -> bytes:
    """Encode an error reply as one line; `hint` is present only if the error has one."""
    parameters = {"message": error.what}
    if error.hint is not None:
        parameters["hint"] = error.hint
    return _encode({"error": PREFIX + error.code, "parameters": parameters})


def decode_reply(line: bytes) -> dict[str, object]:
    """Decode the parameters of a success reply.

    Raises the ControlError of an error reply, and one with the code Internal for a line that is not
    a reply.
    """
    try:
        message = _parse_object(line)
    except ValueError as error:
        raise ControlError("Internal", f"the answer can't be read: {error}") from None
    parameters = message.get("parameters", {})
    if not isinstance(parameters, dict):
        raise ControlError("Internal", "the answer can't be read: parameters is not an object")
    if "error" not in message:
        return parameters
    hint = parameters.get("hint")
    raise ControlError(
        str(message["error"]).removeprefix(PREFIX),
        str(parameters.get("message", message["error"])),
        hint=None if hint is None else str(hint),
    )


def is_continued(line: bytes) -> bool:
    """True for a success reply that others follow."""
    try:
        return _parse_object(line).get("continues") is True
    except ValueError:
        return False


def _encode(message: Mapping[str, object]) -> bytes:
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def _request_from(line: bytes) -> Request:
    message = _parse_object(line)
    if b"\\u" in line:
        # An escape may encode a lone surrogate, which no file and no log can hold.
        try:
            json.dumps(message, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("a string is not Unicode text") from None
        except RecursionError:
            raise ValueError("nested too deeply") from None
    if "method" not in message:
        raise ValueError("method is missing")
    method = message.pop("method")
    if not isinstance(method, str):
        raise ValueError("method is not a string")
    parameters = message.pop("parameters", {})
    if not isinstance(parameters, dict):
        raise ValueError("parameters is not an object")
    if message:
        raise ValueError("there is a member other than method and parameters")
    return Request(method, parameters)


def _parse_object(line: bytes) -> dict[str, object]:
    """Parse a JSON object. Raises ValueError without content of the line: it may carry a key."""
    try:
        message = _JSON.decode(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON, at character {error.pos}: {error.msg}") from None
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    return message


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        # Python's message refers to an interpreter setting.
        raise ValueError("a number is too large") from None


_JSON = json.JSONDecoder(parse_float=_finite, parse_int=_integer, parse_constant=_refuse_constant)
