"""The protocol between a host and the agent in its machine, sans-IO.

The host sends one JSON line per command. The agent answers with frames: kind (1 byte), length
(4 bytes, big-endian), payload. For each command it sends any number of STDOUT and STDERR frames,
then one EXIT frame with the status as 4 bytes.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from esp_gw.errors import LabError

HEADER = struct.Struct("!BI")
STATUS = struct.Struct("!i")
PAYLOAD_MAX = 64 << 10


class Kind(enum.IntEnum):
    """Kind of a frame's payload."""

    STDOUT = 1
    STDERR = 2
    EXIT = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """One message from the agent."""

    kind: Kind
    payload: bytes

    @property
    def status(self) -> int:
        """The exit status in an EXIT frame."""
        (status,) = STATUS.unpack(self.payload)
        return int(status)


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run inside: its arguments, working folder, and whole environment."""

    arguments: tuple[str, ...]
    folder: str
    environment: dict[str, str]

    def encode(self) -> bytes:
        """Return the command as the line that the agent reads."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Command:
        """Return the command from a line made by `encode`."""
        values = json.loads(line)
        return cls(tuple(values["arguments"]), values["folder"], values["environment"])


def encode_frame(kind: Kind, payload: bytes) -> bytes:
    """Return the bytes of a frame with at most PAYLOAD_MAX bytes of payload."""
    return HEADER.pack(kind, len(payload)) + payload


class FrameReader:
    """Splits the byte stream from a machine into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes and yield every complete frame. Raises LabError for a malformed one."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer)
            if kind not in _KINDS or length > PAYLOAD_MAX:
                raise LabError("malformed frame from the machine", hint="its agent is broken")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield Frame(Kind(kind), payload)


_KINDS = frozenset(Kind)
