"""A fake kernel with AF_ALG, built on OpenSSL, with faults chosen by a test."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from esp_gw.crypto import af_alg
from esp_gw.crypto.aead import Buffer

GCM, CHACHA = "gcm(aes)", "rfc7539(chacha20,poly1305)"
Answer = Callable[[bytes], bytes]


class FakeKernel:
    """The algorithms of the kernel, its refusals, and the number of its open sockets.

    `refuses` maps the name of a call to the errno that it fails with: socket, bind, setsockopt,
    accept, sendmsg, recvmsg. `answer` may change the reply to a request; `accepts_all` disables
    the check of ICVs. `requests` holds the operation, nonce, AAD and text of each request.
    """

    def __init__(self) -> None:
        self.offers = {GCM, CHACHA}
        self.refuses: dict[str, int] = {}
        self.answer: Answer = bytes
        self.accepts_all = False
        self.requests: list[tuple[int, bytes, bytes, bytes]] = []
        self.open = 0

    def check(self, call: str) -> None:
        if call in self.refuses:
            code = self.refuses[call]
            raise OSError(code, os.strerror(code))


class FakeSocket:
    """One AF_ALG socket, for a transform or an operation."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        kernel.open += 1
        self._closed = False
        self._pending: list[tuple[int, bytes, bytes, bytes]] = []

    def __enter__(self) -> FakeSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._kernel.open -= not self._closed
        self._closed = True

    def bind(self, address: tuple[str, str]) -> None:
        self._kernel.check("bind")
        kind, self.name = address
        if kind != "aead" or self.name not in self._kernel.offers:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def setsockopt(self, level: int, option: int, value: Any, length: int = 0) -> None:
        self._kernel.check("setsockopt")
        assert level == socket.SOL_ALG
        if option == socket.ALG_SET_KEY:
            self.key = value
        else:
            assert (option, value) == (socket.ALG_SET_AEAD_AUTHSIZE, None)
            self.icv_len = length

    def accept(self) -> tuple[FakeSocket, None]:
        self._kernel.check("accept")
        operation = FakeSocket(self._kernel)
        operation.name, operation.key = self.name, self.key
        operation.icv_len = self.icv_len
        return operation, None

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def sendmsg_afalg(self, parts: Sequence[Buffer], *, op: int, iv: bytes, assoclen: int) -> int:
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._kernel.check("sendmsg")
        data = b"".join(bytes(part) for part in parts)
        request = (op, iv, data[:assoclen], data[assoclen:])
        self._kernel.requests.append(request)
        self._pending.append(request)
        return len(data)

    def recvmsg_into(self, buffers: Sequence[Any]) -> tuple[int, list[Any], int, None]:
        operation, nonce, aad, text = self._pending.pop()
        self._kernel.check("recvmsg")
        room = sum(len(buffer) for buffer in buffers)
        answer = self._kernel.answer(aad + self._work(operation, nonce, aad, text))
        rest = answer = answer[:room]
        for buffer in buffers:
            part, rest = rest[: len(buffer)], rest[len(buffer) :]
            buffer[: len(part)] = part
        return len(answer), [], 0, None

    def _work(self, operation: int, nonce: bytes, aad: bytes, text: bytes) -> bytes:
        chacha = self.name == CHACHA
        if operation == socket.ALG_OP_ENCRYPT:
            cipher = ChaCha20Poly1305(self.key) if chacha else AESGCM(self.key)
            sealed = cipher.encrypt(nonce, text, aad)
            return sealed[: len(text) + self.icv_len]
        try:
            if chacha:
                return ChaCha20Poly1305(self.key).decrypt(nonce, text, aad)
            length = len(text) - self.icv_len
            mode = modes.GCM(nonce, text[length:], min_tag_length=self.icv_len)
            decryptor = Cipher(algorithms.AES(self.key), mode).decryptor()
            decryptor.authenticate_additional_data(aad)
            return decryptor.update(text[:length]) + decryptor.finalize()
        except InvalidTag:
            if self._kernel.accepts_all:
                return bytes(len(text) - self.icv_len)
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG)) from None


def install(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """Replace the kernel seen by esp_gw with one that has AF_ALG."""
    kernel = FakeKernel()

    def make(family: int, kind: int) -> FakeSocket:
        assert (family, kind) == (socket.AF_ALG, socket.SOCK_SEQPACKET)
        kernel.check("socket")
        return FakeSocket(kernel)

    names = {name: value for name, value in vars(socket).items() if "AL" in name or "SOCK" in name}
    monkeypatch.setattr(af_alg, "socket", SimpleNamespace(**{**names, "socket": make}))
    return kernel
