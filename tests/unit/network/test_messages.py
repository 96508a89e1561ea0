"""Netlink messages over a plain socket, against a scripted kernel."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from esp_gw.errors import NetworkError
from esp_gw.network.messages import (
    CREATE,
    DUMP_INTERRUPTED,
    HEADER,
    NLMSG_DONE,
    NLMSG_ERROR,
    TRIES,
    MessageSocket,
)

GET, NEW = 22, 20
Message = tuple[int, int, int, bytes]
"""Type, flags, sequence number and body."""


def code(number: int) -> bytes:
    return struct.pack("=i", -number)


def requests(data: bytes) -> list[tuple[int, int]]:
    """Return type and sequence number of each request that was sent."""
    found, at = [], 0
    while at < len(data):
        length, kind, _, sequence, _ = HEADER.unpack_from(data, at)
        found.append((kind, sequence))
        at += (length + 3) & ~3
    return found


class ScriptedKernel:
    """A socket whose answer to the n-th send is `script[n]`, the last one for all later ones.

    An entry gets the requests that were sent, and returns datagrams or errors.
    """

    def __init__(
        self, *script: Callable[[list[tuple[int, int]]], Sequence[list[Message] | OSError]]
    ) -> None:
        self._script = script
        self.sent: list[list[tuple[int, int]]] = []
        self.opened = 0
        self._waiting: list[list[Message] | OSError] = []

    def open(self) -> MessageSocket:
        return MessageSocket(self._opened)

    def _opened(self) -> Any:
        self.opened += 1
        self._waiting = []
        return self

    def send(self, data: bytes) -> None:
        self.sent.append(requests(data))
        answer = self._script[min(len(self.sent), len(self._script)) - 1]
        self._waiting += answer(self.sent[-1])

    def recv(self, size: int) -> bytes:
        following = self._waiting.pop(0)
        if isinstance(following, OSError):
            raise following
        return b"".join(
            HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0)
            + body
            + bytes(-len(body) % 4)
            for kind, flags, sequence, body in following
        )

    def close(self) -> None:
        self._waiting = []


def dump(*bodies: bytes, flags: int = 0, done: int = 0) -> Callable[..., list[list[Message]]]:
    """Answer a dump with bodies of `flags` in one datagram, and the end in another."""

    def answer(sent: list[tuple[int, int]]) -> list[list[Message]]:
        ((_, sequence),) = sent
        messages = [(NEW, flags, sequence, body) for body in bodies]
        return [messages, [(NLMSG_DONE, done, sequence, code(0))]]

    return answer


def lost(*_: object) -> list[OSError]:
    return [OSError(errno.ENOBUFS, "No buffer space available")]


@pytest.mark.parametrize("where", ["flags", "done"])
def test_an_interrupted_dump_is_repeated(where: str) -> None:
    interrupted = dump(b"old.", **{where: DUMP_INTERRUPTED})
    kernel = ScriptedKernel(interrupted, interrupted, dump(b"new.", b"end."))
    assert kernel.open().dump(GET, b"", "addresses") == [b"new.", b"end."]
    assert len(kernel.sent) == 3


def test_of_dumps_that_are_all_interrupted_the_last_counts() -> None:
    kernel = ScriptedKernel(dump(b"some", flags=DUMP_INTERRUPTED))
    assert kernel.open().dump(GET, b"", "addresses") == [b"some"]
    assert len(kernel.sent) == TRIES


def test_after_a_lost_reply_the_socket_is_a_new_one_and_the_request_is_repeated() -> None:
    def part(sent: list[tuple[int, int]]) -> Sequence[list[Message] | OSError]:
        return [[(NEW, 0, sent[0][1], b"part")], *lost()]

    kernel = ScriptedKernel(part, dump(b"all."))
    assert kernel.open().dump(GET, b"", "addresses") == [b"all."]
    assert kernel.opened == 2


def test_replies_that_are_always_lost_are_an_error() -> None:
    kernel = ScriptedKernel(lost)
    messages = kernel.open()
    with pytest.raises(OSError, match="buffer space"):
        messages.dump(GET, b"", "addresses")
    assert len(kernel.sent) == TRIES
    with pytest.raises(OSError, match="buffer space"):
        messages.change(NEW, CREATE, [b"one."], lambda *_: None)


def test_what_is_left_of_an_earlier_answer_is_skipped() -> None:
    def refused(sent: list[tuple[int, int]]) -> list[list[Message]]:
        sequence = sent[0][1]
        return [[(NLMSG_ERROR, 0, sequence, code(errno.EPERM))], [(NEW, 0, sequence, b"late")]]

    messages = ScriptedKernel(refused, dump(b"mine")).open()
    with pytest.raises(NetworkError, match=r"EPERM"):
        messages.dump(GET, b"", "addresses")
    assert messages.dump(GET, b"", "addresses") == [b"mine"]


@pytest.mark.parametrize("kind", [NLMSG_ERROR, NLMSG_DONE])
def test_a_dump_of_what_is_not_there_is_empty_and_a_refusal_is_an_error(kind: int) -> None:
    def ends(number: int) -> MessageSocket:
        return ScriptedKernel(lambda sent: [[(kind, 0, sent[0][1], code(number))]]).open()

    for number in (errno.ENOENT, errno.ENODEV, errno.EAFNOSUPPORT):
        assert ends(number).dump(GET, b"", "addresses") == []
    with pytest.raises(NetworkError, match=r"^addresses: .*ENOMEM"):
        ends(errno.ENOMEM).dump(GET, b"", "addresses")


def test_each_refused_request_is_named_once_though_a_reply_was_lost() -> None:
    def answered(sent: list[tuple[int, int]]) -> list[list[Message]]:
        numbers = {2: errno.EEXIST}
        return [
            [(NLMSG_ERROR, 0, sequence, code(numbers.get(index, 0)))]
            for index, (_, sequence) in enumerate(sent)
        ]

    def half(sent: list[tuple[int, int]]) -> Sequence[list[Message] | OSError]:
        return [*answered(sent)[:3], *lost()]

    refused: list[tuple[int, int]] = []
    kernel = ScriptedKernel(half, answered)
    kernel.open().change(NEW, CREATE, [b"body"] * 5, lambda *each: refused.append(each))
    assert refused == [(errno.EEXIST, 2)]
    assert [len(sent) for sent in kernel.sent] == [5, 5]
