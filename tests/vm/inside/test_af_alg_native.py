"""The native engine with its keys in the kernel: same bytes, same traffic, fallback on failure."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.pair import GatewayPair, PairPlan, gateway_pair
from esp_gw.model import AF_ALG_ON
from tests.support import twins
from tests.support.borrow import borrow_sockets
from tests.support.labtools import carry_tcp_both_ways, edit, ping
from tests.support.twin_checks import check_inbound, check_outbound

PARALLEL = "pcrypt(generic-gcm-aesni)"
"""The kernel's AES-GCM on its own threads: it completes asynchronously, like an accelerator."""

_SO_DOMAIN = 39

some = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module", autouse=True)
def _parallel() -> None:
    """Select an asynchronous driver for `gcm(aes)`: once instantiated, the kernel prefers it."""
    subprocess.run(["modprobe", "-a", "algif_aead", "aesni_intel", "pcrypt"], check=True)
    with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as transform:
        transform.bind(("aead", PARALLEL))
    drivers = Path("/proc/crypto").read_text().split("\n\n")
    (parallel,) = [driver for driver in drivers if PARALLEL in driver]
    assert "async        : yes" in parallel


@pytest.fixture(scope="module")
def both() -> Iterator[twins.Twins]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twins, "PATIENCE", 20.0)
        with twins.twins(native_af_alg=AF_ALG_ON) as both:
            yield both


@given(st.data())
@some
def test_packets_from_the_tun_leave_as_the_same_bytes_as_with_openssl(
    both: twins.Twins, data: st.DataObject
) -> None:
    check_outbound(both, data)


@given(st.data())
@some
def test_datagrams_from_the_sockets_become_the_same_packets_as_with_openssl(
    both: twins.Twins, data: st.DataObject
) -> None:
    check_inbound(both, data)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayPair]:
    """Two running native gateways, the first with its keys in the kernel."""
    plan = PairPlan(settings={"engine": "native", "workers": 2})
    with gateway_pair(tmp_path_factory.mktemp("pair"), plan) as pair:
        edit(pair.a, lambda config: config.update(crypto={"offload": AF_ALG_ON}))
        pair.start()
        yield pair


def carry(pair: GatewayPair) -> None:
    """Ping from both ends, with and without fragments; send super-packets in both directions."""
    for gateway, end in ((pair.a, 1), (pair.b, 0)):
        assert ping(gateway.namespace, pair.plan.inner(end), count=5) == 5
        assert ping(gateway.namespace, pair.plan.inner(end), count=2, size=20000) == 2
    target = pair.plan.inner(1)
    # A quarter of the volume: an emulated processor encrypts some megabytes a second.
    options = ("-P", "4", "-n", "4M")
    carry_tcp_both_ways(pair.a.namespace, pair.b.namespace, target, *options)


def af_alg_sockets(gateway: LabGateway) -> list[socket.socket]:
    """Duplicates of a daemon's AF_ALG sockets."""
    found = []
    for fd in borrow_sockets(gateway.pid):
        # With a family given, Python does not ask for the name, which AF_ALG sockets lack.
        theirs = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET, 0, fileno=fd)
        if theirs.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN) == socket.AF_ALG:
            found.append(theirs)
        else:
            theirs.close()
    return found


def test_a_key_leaves_the_kernel_with_its_sa(pair: GatewayPair) -> None:
    assert ping(pair.a.namespace, pair.plan.inner(1)) == 5
    assert af_alg_sockets(pair.a)
    config = pair.a.config.read_text()
    edit(pair.a, lambda config: config.pop("tunnels"))
    pair.a.call("Reload")
    assert af_alg_sockets(pair.a) == []
    pair.a.config.write_text(config)
    pair.a.call("Reload")
    assert ping(pair.a.namespace, pair.plan.inner(1)) == 5
    assert af_alg_sockets(pair.a)


def test_traffic_flows_through_the_kernel_and_continues_after_it_refuses_a_packet(
    pair: GatewayPair,
) -> None:
    # Must stay the last test of this file: it leaves the gateway without AF_ALG.
    carry(pair)
    status = pair.a.call("GetStatus")
    assert status["provider"]["aes256gcm16"].startswith("AF_ALG, Linux ")
    assert status["af_alg"]["aes256gcm16"]["in_use"]
    sockets = af_alg_sockets(pair.a)
    # Two keys, each with several concurrent requests from at least one worker.
    assert len(sockets) > 2 * 2 + 2
    # A request whose answer is never read: the kernel accepts no other one.
    for theirs in sockets:
        with theirs, contextlib.suppress(OSError):
            theirs.setblocking(False)
            theirs.sendmsg_afalg([bytes(24)], op=socket.ALG_OP_ENCRYPT, iv=bytes(12), assoclen=8)
    before = pair.a.call("GetStats")["drops"]
    carry(pair)
    assert pair.a.call("GetStats")["drops"] == before
    assert af_alg_sockets(pair.a) == []
    status = pair.a.call("GetStatus")
    assert status["provider"]["aes256gcm16"].startswith("AWS-LC ")
    verdict = status["af_alg"]["aes256gcm16"]
    assert not verdict["in_use"]
    assert "AF_ALG sendmsg: Invalid argument" in verdict["why"]
    lines = pair.a.log.read_text().splitlines()
    assert len([line for line in lines if "AF_ALG is lost" in line]) == 1
