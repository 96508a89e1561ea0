"""The kernel's ciphers through AF_ALG, against OpenSSL and with a faulty kernel."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from esp_gw.crypto import af_alg, openssl
from esp_gw.crypto.af_alg import AfAlgError, MissingError, NotAuthenticError
from esp_gw.model import SUITES, KeyMaterial, Suite
from tests.support.fake_af_alg import FakeKernel, install

NONCE = b"salt" + bytes(range(8))
AAD = b"SPI.seq."
AAD_ESN = b"SPI.seq.high"
DEFAULT = SUITES["aes256gcm16"]

every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=str)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    return install(monkeypatch)


def keymat(suite: Suite) -> KeyMaterial:
    return KeyMaterial(b"\x4b" * suite.key_len, b"salt")


def sealed_by_openssl(suite: Suite, plaintext: bytes, aad: bytes = AAD) -> bytes:
    out = memoryview(bytearray(len(plaintext) + suite.icv_len))
    openssl.make_aead(suite, keymat(suite)).seal_into(NONCE, plaintext, aad, out)
    return bytes(out)


@every_suite
@pytest.mark.parametrize("aad", [AAD, AAD_ESN], ids=["no-esn", "esn"])
@pytest.mark.parametrize("length", [0, 1, 20, 1400])
def test_both_seal_to_the_same_bytes_and_open_each_others(
    kernel: FakeKernel, suite: Suite, aad: bytes, length: int
) -> None:
    plaintext = bytes(i & 255 for i in range(length))
    right = sealed_by_openssl(suite, plaintext, aad)
    aead = af_alg.make_aead(suite, keymat(suite))
    sealed = memoryview(bytearray(len(right)))
    aead.seal_into(NONCE, memoryview(plaintext), aad, sealed)
    assert sealed == right
    opened = memoryview(bytearray(length))
    aead.open_into(NONCE, memoryview(right), aad, opened)
    assert opened == plaintext
    aead.close()
    assert kernel.open == 0


@every_suite
def test_a_forged_packet_is_not_authentic_and_the_next_one_is(
    kernel: FakeKernel, suite: Suite
) -> None:
    right = sealed_by_openssl(suite, bytes(20))
    aead = af_alg.make_aead(suite, keymat(suite))
    for place in (0, 19, len(right) - 1):
        forged = bytearray(right)
        forged[place] ^= 1
        with pytest.raises(NotAuthenticError):
            aead.open_into(NONCE, forged, AAD, memoryview(bytearray(20)))
    aead.open_into(NONCE, right, AAD, memoryview(bytearray(20)))


@pytest.mark.parametrize("call", ["socket", "bind", "setsockopt", "accept"])
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOENT, errno.EAFNOSUPPORT, errno.EMFILE])
def test_a_refused_key_is_reported_by_its_error_and_leaves_no_socket(
    kernel: FakeKernel, call: str, code: int
) -> None:
    kernel.refuses[call] = code
    with pytest.raises(AfAlgError, match=errno.errorcode[code]) as caught:
        af_alg.make_aead(DEFAULT, keymat(DEFAULT))
    # An algorithm that is missing for one key is missing for every key.
    assert isinstance(caught.value, MissingError) is (call in ("socket", "bind"))
    assert "\n" not in str(caught.value)
    assert kernel.open == 0


@pytest.mark.parametrize("call", ["sendmsg", "recvmsg"])
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOKEY, errno.EAGAIN, errno.EINVAL])
def test_a_refused_packet_is_an_error_and_not_a_forged_packet(
    kernel: FakeKernel, call: str, code: int
) -> None:
    right = sealed_by_openssl(DEFAULT, bytes(20))
    aead = af_alg.make_aead(DEFAULT, keymat(DEFAULT))
    kernel.refuses[call] = code
    with pytest.raises(AfAlgError, match=errno.errorcode[code]):
        aead.seal_into(NONCE, bytes(20), AAD, memoryview(bytearray(36)))
    with pytest.raises(AfAlgError, match=errno.errorcode[code]):
        aead.open_into(NONCE, right, AAD, memoryview(bytearray(20)))


@every_suite
@pytest.mark.parametrize(
    "wrong",
    [lambda answer: answer[:-1], lambda answer: b"", lambda answer: b"spi" + answer[3:]],
    ids=["short", "empty", "another-aad"],
)
def test_an_impossible_answer_is_an_error(
    kernel: FakeKernel, suite: Suite, wrong: Callable[[bytes], bytes]
) -> None:
    right = sealed_by_openssl(suite, bytes(20))
    aead = af_alg.make_aead(suite, keymat(suite))
    kernel.answer = wrong
    with pytest.raises(AfAlgError):
        aead.seal_into(NONCE, bytes(20), AAD, memoryview(bytearray(len(right))))
    with pytest.raises(AfAlgError):
        aead.open_into(NONCE, right, AAD, memoryview(bytearray(20)))


def test_a_text_that_gmac_changes_is_an_error(kernel: FakeKernel) -> None:
    suite = SUITES["aes256gmac"]
    right = sealed_by_openssl(suite, bytes(20))
    aead = af_alg.make_aead(suite, keymat(suite))
    # The text begins after SPI, sequence number and IV.
    kernel.answer = lambda answer: answer[:16] + b"\x01" + answer[17:]
    with pytest.raises(AfAlgError, match="changed a text"):
        aead.seal_into(NONCE, bytes(20), AAD, memoryview(bytearray(36)))
    with pytest.raises(AfAlgError, match="changed a text"):
        aead.open_into(NONCE, right, AAD, memoryview(bytearray(20)))


@every_suite
@pytest.mark.parametrize("wrong", [-1, 1])
def test_an_output_of_another_length_is_refused_before_the_kernel_sees_it(
    kernel: FakeKernel, suite: Suite, wrong: int
) -> None:
    aead = af_alg.make_aead(suite, keymat(suite))
    with pytest.raises(ValueError):
        aead.seal_into(NONCE, bytes(20), AAD, memoryview(bytearray(20 + suite.icv_len + wrong)))
    with pytest.raises(ValueError):
        aead.open_into(NONCE, bytes(20 + suite.icv_len), AAD, memoryview(bytearray(20 + wrong)))
    assert kernel.requests == []


def test_a_closed_key_is_an_error(kernel: FakeKernel) -> None:
    aead = af_alg.make_aead(DEFAULT, keymat(DEFAULT))
    aead.close()
    aead.close()
    assert kernel.open == 0
    with pytest.raises(AfAlgError, match="EBADF"):
        aead.seal_into(NONCE, b"", AAD, memoryview(bytearray(16)))


@every_suite
def test_the_key_is_in_no_representation_of_an_aead(kernel: FakeKernel, suite: Suite) -> None:
    assert "KKKK" not in repr(af_alg.make_aead(suite, keymat(suite)))
