"""What goes over the wire between a machine and its host, sans-IO.

The host sends one JSON line for each command. The machine answers with frames: kind (1 byte),
length (4 bytes, big-endian), payload. For each command there are any number of STDOUT and STDERR,
and EXIT with the status as 4 bytes.
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
    """What a frame carries."""

    STDOUT = 1
    STDERR = 2
    EXIT = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """One message of a machine."""

    kind: Kind
    payload: bytes

    @property
    def status(self) -> int:
        """The exit status that an EXIT frame carries."""
        (status,) = STATUS.unpack(self.payload)
        return int(status)


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run inside: its arguments, where, and its whole environment."""

    arguments: tuple[str, ...]
    folder: str
    environment: dict[str, str]

    def encode(self) -> bytes:
        """Return the command as the line that a machine reads."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Command:
        """Return the command of a line that `encode` made."""
        values = json.loads(line)
        return cls(tuple(values["arguments"]), values["folder"], values["environment"])


def encode_frame(kind: Kind, payload: bytes) -> bytes:
    """Return a frame of at most PAYLOAD_MAX bytes of payload as it is sent."""
    return HEADER.pack(kind, len(payload)) + payload


class FrameReader:
    """Cuts the bytes that come from a machine into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes and yield every frame that is whole. Raises LabError for what is none."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer)
            if kind not in _KINDS or length > PAYLOAD_MAX:
                raise LabError("the machine said what is no answer", hint="its agent is broken")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield Frame(Kind(kind), payload)


_KINDS = frozenset(Kind)
