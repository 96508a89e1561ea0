"""The control protocol as bytes in, messages out: JSON lines in the shape of varlink's messages.

A request is `{"method": "io.esp_gw.ListSas", "parameters": {...}}`, its answer `{"parameters":
{...}}` or `{"error": "io.esp_gw.NotFound", "parameters": {"message": "...", "hint": "..."}}`.
One message is one line of UTF-8, and answers come in the order of their requests.
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
"""The longest request in bytes, its line end not counted."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `method` with the interface's prefix, `parameters` that may hold a key."""

    method: str
    parameters: dict[str, object] = field(repr=False)


class RequestDecoder:
    """Turns the bytes of one connection into requests, whatever pieces they arrive in.

    Holds at most one request and what the last `receive_data` brought. A protocol error is final:
    where the next request would begin is no longer known.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._error: ControlError | None = None

    def receive_data(self, data: bytes) -> None:
        """Take bytes as they came from the socket."""
        if self._error is None:
            self._buffer += data

    def next_request(self) -> Request | None:
        """The next whole request, None when more bytes are needed.

        Raises ControlError (InvalidParameter) for what is not a request, and again each time after.
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
    """A request as one line; `method` without the interface's prefix."""
    return _encode({"method": PREFIX + method, "parameters": parameters})


def encode_reply(parameters: Mapping[str, object]) -> bytes:
    """A successful answer as one line. Raises TypeError or ValueError for what JSON can't hold."""
    return _encode({"parameters": parameters})


def encode_error(error: ControlError) -> bytes:
    """An error answer as one line; `hint` is there only when the error has one."""
    parameters = {"message": error.what}
    if error.hint is not None:
        parameters["hint"] = error.hint
    return _encode({"error": PREFIX + error.code, "parameters": parameters})


def decode_reply(line: bytes) -> dict[str, object]:
    """The parameters of a successful answer.

    Raises the ControlError that an error answer carries, and one with the code Internal for a line
    that is no answer.
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


def _encode(message: Mapping[str, object]) -> bytes:
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def _request_from(line: bytes) -> Request:
    message = _parse_object(line)
    if b"\\u" in line:
        # An escape may name half of a surrogate pair, which can go into no file and no log.
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
    """Raises ValueError with a text that holds nothing of the line: it may carry a key."""
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
        # Python's own message speaks of an interpreter setting.
        raise ValueError("a number is too large") from None


_JSON = json.JSONDecoder(parse_float=_finite, parse_int=_integer, parse_constant=_refuse_constant)
