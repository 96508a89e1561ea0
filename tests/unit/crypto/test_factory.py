"""Keys in the kernel with a fallback to OpenSSL: a failure of the kernel loses no packet."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
from cryptography.exceptions import InvalidTag

from esp_gw.crypto import factory as factory_module
from esp_gw.crypto import openssl
from esp_gw.crypto.aead import Aead, AfAlgStatus, Buffer
from esp_gw.crypto.factory import CHECKED, MAX_KEYS, AeadFactory
from esp_gw.errors import EngineError
from esp_gw.model import SUITES, KeyMaterial, Suite
from tests.support.fake_af_alg import FakeKernel, install

SUITE = SUITES["aes256gcm16"]
AAD = b"SPI.seq."
USED = AfAlgStatus(True, "switched on")


class Rig:
    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.lost: list[str] = []
        self.factory = AeadFactory(dict.fromkeys(SUITES, USED), False, self.lost.append)
        self.seq = 0

    def make(self, number: int = 0) -> Aead:
        return self.factory.make_aead(SUITE, keymat(number))

    def seal(self, aead: Aead, number: int = 0) -> None:
        """Seal the next packet and check that OpenSSL opens it."""
        self.seq += 1
        nonce = b"salt" + self.seq.to_bytes(8)
        plaintext = f"packet {self.seq}".encode()
        out = memoryview(bytearray(len(plaintext) + 16))
        aead.seal_into(nonce, plaintext, AAD, out)
        opened = memoryview(bytearray(len(plaintext)))
        openssl.make_aead(SUITE, keymat(number)).open_into(nonce, out, AAD, opened)
        assert opened == plaintext

    def open(self, aead: Aead, tamper: bool = False) -> None:
        """Open the next packet of a peer."""
        self.seq += 1
        nonce = b"salt" + self.seq.to_bytes(8)
        sealed = memoryview(bytearray(20 + 16))
        openssl.make_aead(SUITE, keymat(0)).seal_into(nonce, bytes(range(20)), AAD, sealed)
        sealed[0] ^= tamper
        out = memoryview(bytearray(20))
        aead.open_into(nonce, sealed, AAD, out)
        assert out == bytes(range(20))

    @property
    def in_kernel(self) -> int:
        """Number of packets requested from the kernel since the last call."""
        count = len(self.kernel.requests)
        self.kernel.requests.clear()
        return count


def keymat(number: int) -> KeyMaterial:
    return KeyMaterial(number.to_bytes(32), b"salt")


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(install(monkeypatch))


def test_packets_go_through_the_kernel(rig: Rig) -> None:
    aead = rig.make()
    for _ in range(2 * CHECKED):
        rig.seal(aead)
        rig.open(aead)
    assert rig.in_kernel == 4 * CHECKED
    assert rig.lost == []
    assert rig.factory.provider("aes256gcm16").startswith("AF_ALG, Linux ")


@pytest.mark.parametrize("call", ["sendmsg", "recvmsg"])
@pytest.mark.parametrize("way", [Rig.seal, Rig.open])
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOENT, errno.EAFNOSUPPORT, errno.ENOKEY])
def test_a_packet_that_the_kernel_refuses_and_all_after_it_go_through_openssl(
    rig: Rig, call: str, way: Callable[[Rig, Aead], None], code: int
) -> None:
    aead, other = rig.make(), rig.make(1)
    way(rig, aead)
    rig.kernel.refuses[call] = code
    way(rig, aead)
    (reason,) = rig.lost
    assert errno.errorcode[code] in reason
    # A kernel that recovers is not trusted again before the next start.
    del rig.kernel.refuses[call]
    assert rig.in_kernel
    way(rig, aead)
    rig.seal(other, 1)
    rig.seal(rig.make(2), 2)
    assert rig.in_kernel == 0
    assert rig.kernel.open == 0
    assert len(rig.lost) == 1
    status = rig.factory.status("aes256gcm16")
    assert not status.in_use
    assert reason in status.why
    assert rig.factory.provider("aes256gcm16").startswith("OpenSSL ")


@pytest.mark.parametrize("fault", ["refuses", "lies"])
def test_a_nonce_is_used_again_only_with_the_same_packet(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The IV rule: if a packet is sealed twice, all inputs are the same."""
    by_library: list[tuple[bytes, bytes, bytes]] = []

    def watched(suite: Suite, keymat: KeyMaterial) -> Aead:
        aead = openssl.make_aead(suite, keymat)

        def seal_into(nonce: bytes, text: Buffer, aad: bytes, out: memoryview) -> None:
            by_library.append((nonce, aad, bytes(text)))
            aead.seal_into(nonce, text, aad, out)

        return replace(aead, seal_into=seal_into)

    with monkeypatch.context() as patch:
        patch.setattr(factory_module, "openssl", SimpleNamespace(make_aead=watched))
        aead = rig.make()
    rig.seal(aead)
    if fault == "refuses":
        rig.kernel.refuses["recvmsg"] = errno.EPERM
    else:
        rig.kernel.answer = lambda answer: answer[:-1]
    rig.seal(aead)
    rig.seal(aead)
    assert [request[1:] for request in rig.kernel.requests] == by_library[:2]
    assert len({nonce for nonce, _, _ in by_library}) == len(by_library) == 3


def test_the_first_packet_that_the_kernel_seals_wrongly_is_sent_correctly(rig: Rig) -> None:
    aead = rig.make()
    rig.kernel.answer = lambda answer: answer[:-1] + bytes((answer[-1] ^ 1,))
    rig.seal(aead)
    assert rig.lost == ["it sealed a packet wrongly"]


def test_a_kernel_that_begins_to_seal_wrongly_is_detected(rig: Rig) -> None:
    aead = rig.make()
    rig.seal(aead)
    rig.kernel.answer = lambda answer: answer[:-1] + bytes((answer[-1] ^ 1,))
    for _ in range(CHECKED - 1):
        with pytest.raises(InvalidTag):
            rig.seal(aead)
        assert rig.lost == []
    rig.seal(aead)
    assert rig.lost == ["it sealed a packet wrongly"]


def test_an_authentic_packet_that_the_kernel_refuses_is_accepted(rig: Rig) -> None:
    aead = rig.make()
    rig.open(aead)
    rig.kernel.refuses["recvmsg"] = errno.EBADMSG
    rig.open(aead)
    assert rig.lost == ["it refused an authentic packet"]


def test_forged_packets_are_refused_and_turn_nothing_off(rig: Rig) -> None:
    aead = rig.make()
    for _ in range(3):
        with pytest.raises(InvalidTag):
            rig.open(aead, tamper=True)
        rig.open(aead)
    assert rig.lost == []
    assert rig.in_kernel == 6


def test_a_kernel_that_accepts_everything_is_detected_by_the_first_packet(rig: Rig) -> None:
    aead = rig.make()
    rig.kernel.accepts_all = True
    with pytest.raises(InvalidTag):
        rig.open(aead, tamper=True)
    assert rig.lost == ["it accepted a forged packet"]


def test_a_kernel_that_opens_wrongly_is_detected_by_the_first_packet(rig: Rig) -> None:
    aead = rig.make()
    rig.kernel.answer = lambda answer: answer[:-1] + bytes((answer[-1] ^ 1,))
    rig.open(aead)
    assert rig.lost == ["it opened a packet wrongly"]


@pytest.mark.parametrize("call", ["socket", "bind", "setsockopt", "accept"])
def test_a_kernel_that_takes_no_further_key_ends_af_alg(rig: Rig, call: str) -> None:
    """This happens if its module is blocked while sockets are open."""
    first = rig.make()
    rig.seal(first)
    rig.kernel.refuses[call] = errno.ENOENT
    second = rig.make(1)
    rig.kernel.requests.clear()
    rig.seal(second, 1)
    rig.seal(first)
    assert rig.in_kernel == 0
    assert rig.kernel.open == 0
    assert len(rig.lost) == 1


def test_a_key_leaves_the_kernel_with_its_sa(rig: Rig) -> None:
    aeads = [rig.make(number) for number in range(3)]
    assert rig.kernel.open == 3
    aeads[1].close()
    aeads[1].close()
    assert rig.kernel.open == 2
    rig.seal(aeads[2], 2)
    assert rig.in_kernel == 1
    rig.factory.close()
    assert rig.kernel.open == 0
    assert rig.lost == []


def test_the_number_of_keys_in_the_kernel_is_bounded(rig: Rig) -> None:
    aeads = [rig.make(number) for number in range(MAX_KEYS + 2)]
    assert rig.kernel.open == MAX_KEYS
    assert f"beyond {MAX_KEYS} keys" in rig.factory.status("aes256gcm16").why
    rig.seal(aeads[-1], MAX_KEYS + 1)
    assert rig.in_kernel == 0
    aeads[0].close()
    rig.seal(rig.make(1), 1)
    assert rig.in_kernel == 1
    assert rig.kernel.open == MAX_KEYS
    assert rig.lost == []


def test_a_suite_that_the_kernel_lacks_is_refused_if_af_alg_is_required(rig: Rig) -> None:
    lacking = {
        **dict.fromkeys(SUITES, USED),
        "chacha20poly1305": AfAlgStatus(False, "no such thing"),
    }
    chacha = SUITES["chacha20poly1305"]
    AeadFactory(lacking, False, rig.lost.append).make_aead(chacha, keymat(0)).close()
    required = AeadFactory(lacking, True, rig.lost.append)
    required.make_aead(SUITE, keymat(0))
    with pytest.raises(EngineError, match="no such thing; set 'crypto"):
        required.make_aead(chacha, keymat(0))
    # If AF_ALG is lost at run time, the gateway continues: a tunnel is worth more.
    required.lose("gone")
    required.make_aead(chacha, keymat(0))
    assert rig.kernel.open == 0
