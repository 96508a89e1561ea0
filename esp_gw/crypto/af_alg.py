"""AES-GCM, ChaCha20-Poly1305 and AES-GMAC in the kernel, through AF_ALG sockets.

A request is one sendmsg (AAD, then text) and one recvmsg (the AAD again, then the result). Source:
Documentation/crypto/userspace-if.rst and crypto/algif_aead.c of the kernel.
"""

from __future__ import annotations

import errno
import socket

from esp_gw.crypto.aead import Aead, Buffer
from esp_gw.model import AES_GCM, AES_GMAC, CHACHA20_POLY1305, KeyMaterial, Suite
from esp_gw.protocol import SALT_LEN

_ALGORITHMS = {
    AES_GCM: "gcm(aes)",
    AES_GMAC: "gcm(aes)",
    CHACHA20_POLY1305: "rfc7539(chacha20,poly1305)",
}


class AfAlgError(Exception):
    """AF_ALG is unavailable or returned an invalid result; the text is the reason, on one line."""


class MissingError(AfAlgError):
    """The kernel does not offer the algorithm to this process, independent of the key."""


class NotAuthenticError(Exception):
    """The kernel reports that the ICV is not valid for these bytes under this key."""


def algorithm(suite: Suite) -> str:
    """The kernel's name for the AEAD of a suite, as listed in /proc/crypto."""
    return _ALGORITHMS[suite.cipher]


def make_aead(suite: Suite, keymat: KeyMaterial) -> Aead:
    """Load the key of `keymat` into the kernel; `close` of the AEAD removes it.

    This and all functions of the AEAD raise AfAlgError if the kernel refuses or returns an
    impossible result. The length of the key is not checked here but by make_aead of OpenSSL.
    """
    key = (_ReadableKey if suite.is_readable else _Key)(suite, keymat)
    return Aead(key.seal_into, key.open_into, NotAuthenticError, key.close)


class _Key:
    """The operation socket of one key; it never blocks, and no request is pending between calls."""

    __slots__ = ("_icv_len", "_sock")

    def __init__(self, suite: Suite, keymat: KeyMaterial) -> None:
        self._icv_len = suite.icv_len
        name = algorithm(suite)
        # The key stays with the operation socket after the transform socket is closed.
        with _open_transform(name) as transform:
            try:
                transform.setsockopt(socket.SOL_ALG, socket.ALG_SET_KEY, keymat.key)
                transform.setsockopt(
                    socket.SOL_ALG, socket.ALG_SET_AEAD_AUTHSIZE, None, suite.icv_len
                )
                self._sock, _ = transform.accept()
            except OSError as error:
                text = f"the kernel refused a key of {suite}: {_named(error)}"
                raise AfAlgError(text) from None
        self._sock.setblocking(False)

    def close(self) -> None:
        """Remove the key from the kernel."""
        self._sock.close()

    def seal_into(self, nonce: bytes, plaintext: Buffer, aad: bytes, out: memoryview) -> None:
        """Seal as `Aead.seal_into` does."""
        if len(out) != len(plaintext) + self._icv_len:
            raise ValueError("out must be as long as the plaintext and the ICV")
        try:
            self._ask(socket.ALG_OP_ENCRYPT, nonce, aad, plaintext, out)
        except OSError as error:
            raise AfAlgError(_refused(error)) from None

    def open_into(
        self, nonce: bytes, ciphertext_and_icv: Buffer, aad: bytes, out: memoryview
    ) -> None:
        """Open as `Aead.open_into` does."""
        if len(out) != len(ciphertext_and_icv) - self._icv_len:
            raise ValueError("out must be as long as the ciphertext without the ICV")
        try:
            self._ask(socket.ALG_OP_DECRYPT, nonce, aad, ciphertext_and_icv, out)
        except OSError as error:
            if error.errno == errno.EBADMSG:
                raise NotAuthenticError from None
            raise AfAlgError(_refused(error)) from None

    def _ask(self, operation: int, nonce: bytes, aad: bytes, text: Buffer, out: memoryview) -> None:
        self._exchange(operation, nonce, (aad, text), len(aad), out)

    def _exchange(
        self,
        operation: int,
        nonce: bytes,
        request: tuple[bytes, Buffer],
        assoclen: int,
        out: memoryview,
    ) -> None:
        """Execute one request; the reply echoes its first part, and the rest goes to `out`.

        The kernel processes only a part of the text if the room for the reply is too small, so the
        length of `out` must be exact.
        """
        head, text = request
        sent = self._sock.sendmsg_afalg(request, op=operation, iv=nonce, assoclen=assoclen)
        echo = bytearray(len(head))
        received = self._sock.recvmsg_into((echo, out))[0]
        if sent != len(head) + len(text) or received != len(head) + len(out):
            raise AfAlgError(f"the kernel took {sent} bytes and answered with {received}")
        if echo != head:
            raise AfAlgError("the kernel's answer belongs to another packet")


class _ReadableKey(_Key):
    """AES-GMAC: header, IV and text are all AAD (RFC 4543 3.3), so the text is echoed as well."""

    __slots__ = ()

    def _ask(self, operation: int, nonce: bytes, aad: bytes, text: Buffer, out: memoryview) -> None:
        head = aad + nonce[SALT_LEN:]
        length = min(len(text), len(out))
        self._exchange(operation, nonce, (head, text), len(head) + length, out)
        if out[:length] != text[:length]:
            raise AfAlgError("the kernel changed a text that is only to be authenticated")


def _open_transform(name: str) -> socket.socket:
    transform = None
    try:
        transform = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)
        transform.bind(("aead", name))
    except OSError as error:
        if transform is not None:
            transform.close()
        raise MissingError(_missing(error, name)) from None
    return transform


def _refused(error: OSError) -> str:
    return f"the kernel refused a packet: {_named(error)}"


def _missing(error: OSError, name: str) -> str:
    """The reason that an algorithm is unavailable, for the operator."""
    match error.errno:
        case errno.EAFNOSUPPORT:
            where = "not in this kernel, or excluded by RestrictAddressFamilies= of the unit"
            return f"{where} ({_named(error)})"
        case errno.ENOENT:
            return f"the kernel offers no {name}: its module is missing or blocked (ENOENT)"
        case errno.EPERM | errno.EACCES:
            return f"the kernel or a sandbox forbids it ({_named(error)})"
    return f"the kernel refused a socket for {name}: {_named(error)}"


def _named(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0) or str(error)
