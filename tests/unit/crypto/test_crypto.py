"""The AEADs with published packets, truncated ICVs, and tampering."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esp_gw.crypto import processor
from esp_gw.crypto.openssl import make_aead
from esp_gw.errors import EngineError
from esp_gw.model import SUITES, KeyMaterial, Suite

VECTORS = Path(__file__).parents[2] / "vectors"
CASES = [
    case
    for name in ("esp_gcm.json", "esp_chacha20poly1305.json")
    for case in json.loads((VECTORS / name).read_text())["cases"]
]
NONCE = b"saltiv-iv-iv"
AAD = b"spi.seq."

every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=str)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])


def keymat_for(suite: Suite) -> KeyMaterial:
    return KeyMaterial(bytes(range(7, 7 + suite.key_len)), b"salt")


def suites_of(case: dict[str, str]) -> list[Suite]:
    """The suite of a published case and those that differ from it only in the ICV."""
    published = SUITES[case["suite"]]
    return [
        suite
        for suite in SUITES.values()
        if (suite.cipher, suite.key_len) == (published.cipher, published.key_len)
    ]


def test_there_are_vectors_for_every_cipher_and_key_length() -> None:
    """Except for GMAC, which is tested against scapy (tests/interop)."""
    assert {SUITES[case["suite"]] for case in CASES} == {
        suite for suite in SUITES.values() if suite.icv_len == 16 and not suite.is_readable
    }


@every_case
def test_published_packets_are_sealed_and_opened_byte_for_byte(case: dict[str, str]) -> None:
    key, salt, iv, plaintext = (
        bytes.fromhex(case[name]) for name in ("key", "salt", "iv", "plaintext")
    )
    aad = bytes.fromhex(case["spi"] + case["seq"])
    published = bytes.fromhex(case["packet"])[16:]
    for suite in suites_of(case):
        aead = make_aead(suite, KeyMaterial(key, salt))
        # A shorter ICV is a prefix of the full tag (RFC 4106 6).
        expected = published[: len(plaintext) + suite.icv_len]
        sealed = bytearray(len(expected))
        aead.seal_into(salt + iv, plaintext, aad, memoryview(sealed))
        assert sealed == expected
        opened = bytearray(len(plaintext))
        aead.open_into(salt + iv, memoryview(expected), aad, memoryview(opened))
        assert opened == plaintext


@every_suite
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 1500, 65536])
def test_a_sealed_packet_opens_to_the_same_plaintext(suite: Suite, length: int) -> None:
    aead = make_aead(suite, keymat_for(suite))
    plaintext = bytes(i * 7 & 0xFF for i in range(length))
    sealed = memoryview(bytearray(length + suite.icv_len))
    aead.seal_into(NONCE, plaintext, AAD, sealed)
    opened = bytearray(length)
    aead.open_into(NONCE, sealed, AAD, memoryview(opened))
    assert opened == plaintext


@every_suite
def test_a_changed_byte_anywhere_fails_authentication(suite: Suite) -> None:
    aead = make_aead(suite, keymat_for(suite))
    sealed = bytearray(20 + suite.icv_len)
    aead.seal_into(NONCE, bytes(20), AAD, memoryview(sealed))
    inputs = (NONCE, bytes(sealed), AAD)
    aead.open_into(*inputs, memoryview(bytearray(20)))
    for part, good in enumerate(inputs):
        for place in range(len(good)):
            for bit in (1, 0x80):
                bad = bytearray(good)
                bad[place] ^= bit
                changed = [*inputs]
                changed[part] = bytes(bad)
                with pytest.raises(aead.authentication_error):
                    aead.open_into(*changed, memoryview(bytearray(20)))


@pytest.mark.parametrize("name", ["aes256gcm12", "aes128gcm8"])
def test_a_short_icv_leaves_no_unauthenticated_plaintext_behind(name: str) -> None:
    suite = SUITES[name]
    aead = make_aead(suite, keymat_for(suite))
    sealed = bytearray(40 + suite.icv_len)
    aead.seal_into(NONCE, b"secret!!" * 5, AAD, memoryview(sealed))
    sealed[-1] ^= 1
    out = bytearray(40)
    with pytest.raises(aead.authentication_error):
        aead.open_into(NONCE, sealed, AAD, memoryview(out))
    assert out == bytes(40)


@every_suite
@pytest.mark.parametrize("wrong", [-1, 1])
def test_an_output_of_another_length_is_refused(suite: Suite, wrong: int) -> None:
    aead = make_aead(suite, keymat_for(suite))
    sealed = memoryview(bytearray(20 + suite.icv_len))
    aead.seal_into(NONCE, bytes(20), AAD, sealed)
    with pytest.raises(ValueError):
        aead.seal_into(NONCE, bytes(20), AAD, memoryview(bytearray(len(sealed) + wrong)))
    with pytest.raises(ValueError):
        aead.open_into(NONCE, sealed, AAD, memoryview(bytearray(20 + wrong)))


@every_suite
def test_a_key_or_salt_of_another_length_is_refused_without_being_shown(suite: Suite) -> None:
    good = keymat_for(suite)
    longer_key = bytes(good.key) + b"\x5a" * 8
    for bad in (
        KeyMaterial(good.key[:-1], good.salt),
        KeyMaterial(longer_key, good.salt),
        KeyMaterial(good.key, b"salts"),
    ):
        with pytest.raises(EngineError) as caught:
            make_aead(suite, bad)
        assert str(suite) in str(caught.value)
        assert bad.key.hex() not in str(caught.value)
        assert repr(bad.key) not in str(caught.value)


@every_suite
def test_the_key_is_in_no_representation_of_an_aead(suite: Suite) -> None:
    keymat = KeyMaterial(b"K" * suite.key_len, b"salt")
    assert "KKKK" not in repr(make_aead(suite, keymat))


@pytest.mark.parametrize("name", ["aes256gcm16", "chacha20poly1305"])
def test_a_full_icv_is_sealed_and_opened_by_the_library_itself(name: str) -> None:
    aead = make_aead(SUITES[name], keymat_for(SUITES[name]))
    assert [f.__name__ for f in (aead.seal_into, aead.open_into)] == [
        "encrypt_into",
        "decrypt_into",
    ]


@pytest.mark.parametrize(
    ("flags", "path"),
    [
        ("fpu aes pclmulqdq avx2 vaes vpclmulqdq avx512f avx512vl", "VAES, AVX-512"),
        ("fpu aes pclmulqdq avx2 vaes vpclmulqdq", "AES-NI, AVX2"),
        ("fpu aes pclmulqdq", "AES-NI"),
        ("fp asimd aes pmull sha1", "ARMv8 Crypto Extensions"),
        ("fp asimd", "none"),
        ("fpu aes", "none"),
    ],
)
def test_the_processors_aes_instructions_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, path: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_CPUINFO", cpuinfo)
    assert processor.aes_path() == "none"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert processor.aes_path() == path
