"""The plugin kernel-esp-gw under AddressSanitizer and UBSan, inside charon, through its life."""

from __future__ import annotations

import subprocess
from pathlib import Path

from esp_gw.engine.base import RELAY_HEADER
from tests.support.charon import PLUGIN, PLUGINS, build_plugin
from tests.support.ike_rig import NETWORKS, End, await_child, configure, start, two_ends
from tests.support.labtools import until


def library(name: str) -> str:
    """Return the path of a library of the compiler that built the plugin."""
    command = ["cc", f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_life_of_children_restarts_and_refusals_is_clean(tmp_path: Path) -> None:
    installed = build_plugin(tmp_path, "--sanitize")
    # strongSwan's own conversions are unknown to the sanitizer's printf.
    asan = "check_printf=0:detect_stack_use_after_return=1:fast_unwind_on_malloc=0"
    # OpenSSL keeps what it has loaded.
    known = tmp_path / "known"
    known.write_text("leak:libcrypto\n")
    lsan = f"suppressions={known}:print_suppressions=0"
    with two_ends(installed) as ends:
        for end in ends:
            # The plugin too: charon unloads it before leaks are looked for.
            preload = f"{library('libasan.so')} {library('libubsan.so')} {PLUGINS}/{PLUGIN}"
            end.charon.preload = f'LD_PRELOAD="{preload}" ASAN_OPTIONS={asan} LSAN_OPTIONS={lsan}'
            end.charon.settings = {"delete_rekeyed_delay": 1}
        # By the port that the gateway has, too.
        in_udp = {"encap": "yes", "mobike": "yes"}
        configure(
            ends,
            of_connection=in_udp,
            start_action="trap",
            rekey_time="8s",
            life_time="60s",
            rand_time="0s",
        )
        start(*ends)
        live(ends)
        for end in ends:
            status = end.charon.stop()
            said = (end.charon.folder / "charon.out").read_text()
            assert (status, said) == (0, "")


def live(ends: list[End]) -> None:
    one, two = ends
    packet = {"local": "10.1.0.5", "remote": "10.2.0.7", "protocol": 17}
    one.owner.event("Acquire", policy=one.policy()["id"], **packet, local_port=1, remote_port=2)
    for end in ends:
        await_child(end)
    write_wrongly(one)
    first = one.sa("outbound")["spi"]
    one.charon.swanctl("--list-sas")
    # On a busy machine the next rekey has begun before the former SA is gone.
    until(lambda: ("outbound", first) not in one.owner.sas, "a rekey by time", 90)
    one.owner.event("SoftExpired", direction="outbound", spi=first, why="bytes")
    one.owner.event("Lost", count=3)
    one.owner.event("Unheard", of="event")
    one.owner.stop()
    one.owner.sas.clear()
    one.owner.start()
    for end in ends:
        await_child(end)
    two.owner.refuse["InstallChild"] = "no more"
    one.charon.swanctl("--initiate", "--child", "net", "--timeout", "5", check=False)
    del two.owner.refuse["InstallChild"]
    two.owner.swallow.add("InstallChild")
    one.charon.swanctl("--terminate", "--ike", "peer")
    until(lambda: one.owner.protected() == {NETWORKS[1]: None}, "the trap alone")
    one.charon.initiate()
    for end in ends:
        await_child(end)


def write_wrongly(end: End) -> None:
    """Give charon datagrams that no gateway writes, and messages that no peer does."""
    port = end.owner.ike_port
    assert port is not None
    for source, destination in ((4500, 4500), (500, 4500), (0, 0)):
        header = RELAY_HEADER.pack(bytes(16), bytes(16), source, destination)
        for datagram in (b"", b"short", header[:-1], header, header + b"x", header + bytes(65000)):
            port.send_raw(datagram)
    moved = {"address": "192.0.2.2", "port": 4501}
    spi = end.sa("inbound")["spi"]
    end.owner.event("PeerAddressChanged", direction="inbound", spi=spi, **moved)
    end.owner.event("PeerAddressChanged", direction="inbound", spi=spi, address="none", port=-1)
