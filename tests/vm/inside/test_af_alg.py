"""AF_ALG of a real kernel: against OpenSSL, against the kernel's ESP, and withdrawn."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_gw.crypto import af_alg, openssl
from esp_gw.crypto.measure import Sealer
from esp_gw.crypto.probe import choose, find_faults
from esp_gw.demo.gateways import LabGateway
from esp_gw.model import SUITES, Encapsulation, KeyMaterial, Mode, Suite
from esp_gw.protocol import IV_LEN, SALT_LEN
from tests.support.engines import ENGINES
from tests.support.kernel_peer import (
    Link,
    Peers,
    kernel_peers,
    sizes,
    with_keys,
    write_configuration,
)
from tests.support.matrix import every_run

SABOTAGE = Path(__file__).parent / "sabotage"
LENGTHS = [*range(34), 63, 64, 65, 576, 1400, 1500, 4095, 4096, 4097, 9000, 65535]
# One SA pair for every suite; the other parameters alternate.
LINKS = [
    with_keys(
        Link(
            number,
            mode=list(Mode)[number % 2],
            encapsulation=list(Encapsulation)[number // 2 % 2],
            suite=suite,
            esn=number % 3 > 0,
        )
    )
    for number, suite in enumerate(SUITES.values(), 1)
]
on_one_engine = every_run(lambda params: params["peers"] == ENGINES[-1])
every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=str)


def keymat(suite: Suite) -> KeyMaterial:
    return KeyMaterial(os.urandom(suite.key_len), os.urandom(SALT_LEN))


@every_suite
@pytest.mark.parametrize("aad_len", [8, 12])
def test_af_alg_and_openssl_seal_to_the_same_bytes_and_open_each_others_packets(
    suite: Suite, aad_len: int
) -> None:
    key = keymat(suite)
    kernel, library = af_alg.make_aead(suite, key), openssl.make_aead(suite, key)
    for seq, length in enumerate(LENGTHS, 1):
        nonce, aad = key.salt + seq.to_bytes(IV_LEN), os.urandom(aad_len)
        plaintext = os.urandom(length)
        by_kernel, by_library = (memoryview(bytearray(length + suite.icv_len)) for _ in range(2))
        kernel.seal_into(nonce, plaintext, aad, by_kernel)
        library.seal_into(nonce, plaintext, aad, by_library)
        assert by_kernel == by_library, length
        opened = memoryview(bytearray(length))
        kernel.open_into(nonce, by_library, aad, opened)
        assert opened == plaintext
    kernel.close()


@every_suite
def test_af_alg_refuses_every_changed_byte_and_then_opens_the_right_packet(suite: Suite) -> None:
    key = keymat(suite)
    kernel = af_alg.make_aead(suite, key)
    right = memoryview(bytearray(20 + suite.icv_len))
    inputs = (key.salt + bytes(IV_LEN), bytes(20), b"SPI.seq.")
    kernel.seal_into(*inputs, right)
    out = memoryview(bytearray(20))
    for part, good in enumerate((inputs[0], bytes(right), inputs[2])):
        for place in range(len(good)):
            changed = [inputs[0], bytes(right), inputs[2]]
            changed[part] = good[:place] + bytes((good[place] ^ 0x80,)) + good[place + 1 :]
            with pytest.raises(af_alg.NotAuthenticError):
                kernel.open_into(*changed, out)
    kernel.open_into(inputs[0], right, inputs[2], out)
    assert out == bytes(20)
    kernel.close()


def test_the_kernel_passes_the_self_test_and_is_measured() -> None:
    assert find_faults() == {}
    for verdict in choose("auto", Sealer(native=False)).values():
        assert len(verdict.af_alg_ns) == len(verdict.library_ns) == 3
        assert verdict.why.startswith("AF_ALG takes ")


@pytest.fixture(scope="module", params=ENGINES)
def peers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Peers]:
    """A gateway that does all of its cryptography by AF_ALG, and the kernel's ESP as its peer."""

    def prepare(gateway: LabGateway) -> None:
        gateway.env["PYTHONPATH"] = str(SABOTAGE)
        configure(gateway, request.param, LINKS)

    # The tests count the keys of the whole machine.
    assert keys_in_kernel() == 0
    with kernel_peers(tmp_path_factory.mktemp("gateway"), LINKS, prepare) as peers:
        yield peers


def configure(gateway: LabGateway, engine: str, links: list[Link]) -> None:
    settings = {**gateway.settings, "engine": engine}
    write_configuration(gateway.config, links, settings, crypto={"offload": "on"})


def exchange(peers: Peers) -> None:
    """Send packets of two sizes through every SA, in both directions."""
    for link in LINKS:
        for version in link.inner_versions:
            for sender in (0, 1):
                addresses = link.inner(sender, version), link.inner(1 - sender, version)
                with (
                    peers.socket(sender, addresses[0], socket.SOCK_DGRAM) as ours,
                    peers.socket(1 - sender, addresses[1], socket.SOCK_DGRAM) as theirs,
                ):
                    ours.connect(theirs.getsockname())
                    for size in sizes(link, [1, 1300]):
                        payload = os.urandom(size)
                        ours.send(payload)
                        what = f"{link}, {size} bytes, IPv{version}"
                        assert peers.receive(theirs, what) == payload
    assert peers.refused() == {}


def keys_in_kernel() -> int:
    """Number of keyed transforms in the whole machine: each holds a reference to the module."""
    references = Path("/sys/module/algif_aead/refcnt")
    return int(references.read_text()) if references.exists() else 0


@on_one_engine
def test_a_gateway_on_af_alg_and_the_kernels_esp_interoperate(peers: Peers) -> None:
    exchange(peers)
    status = peers.gateway.call("GetStatus")
    assert status["af_alg"].keys() == SUITES.keys()
    assert all(verdict["in_use"] for verdict in status["af_alg"].values())
    assert all("AF_ALG" in name for name in status["provider"].values())
    status = peers.gateway.cli("status", check=False).stdout
    assert "AF_ALG: used for aes128gcm12 " in status


@on_one_engine
def test_no_key_stays_in_the_kernel_after_its_sa_is_removed(peers: Peers) -> None:
    status = peers.gateway.call("GetStatus")
    assert keys_in_kernel() >= 2 * len(LINKS)
    configure(peers.gateway, status["engine"], LINKS[1:2])
    assert peers.gateway.call("Reload")["changes"]
    # The native engine has one copy of a key per worker that receives its packets.
    assert keys_in_kernel() <= 2 * status["workers"]
    configure(peers.gateway, status["engine"], LINKS)
    assert peers.gateway.call("Reload")["changes"]


@on_one_engine
def test_a_gateway_that_loses_af_alg_loses_no_packet(peers: Peers) -> None:
    os.kill(peers.gateway.pid, signal.SIGUSR1)
    exchange(peers)
    status = peers.gateway.call("GetStatus")
    assert not any(verdict["in_use"] for verdict in status["af_alg"].values())
    assert all("lost" in verdict["why"] for verdict in status["af_alg"].values())
    assert not any("AF_ALG" in name for name in status["provider"].values())
    lines = peers.gateway.log.read_text().splitlines()
    (line,) = [line for line in lines if "AF_ALG is lost" in line]
    assert "EPERM" in line or "Operation not permitted" in line
    peers.gateway.stop()
    assert keys_in_kernel() == 0
