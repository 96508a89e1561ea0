"""charon with the plugin kernel-esp-gw: what it asks of the gateway, step by step.

Both charons are Debian's, unmodified. The gateways are fakes that check each request against the
control protocol; no packet of a child is sent.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.waiting import holds_within
from tests.support.fake_owner import Json
from tests.support.ike_rig import (
    IDENTITIES,
    NETWORKS,
    End,
    await_child,
    certify,
    configure,
    is_up,
    mirrored,
    start,
)
from tests.support.labtools import until


@pytest.mark.parametrize("authentication", ["psk", "certificates"])
def test_a_child_is_installed_in_one_step_and_fits_the_peers(
    ends: list[End], authentication: str
) -> None:
    if authentication == "certificates":
        certify(ends)
    start(*ends)
    ends[0].charon.initiate()
    for end, peer in (ends, ends[::-1]):
        await_child(end)
        (installed,) = end.owner.calls("InstallChild")
        assert [sa["direction"] for sa in installed["sas"]] == ["inbound", "outbound"]
        assert end.owner.calls("OpenSession") == [{"owner": "ike", "take_over": False}]
        reserved = end.owner.calls("ReserveSpi")
        assert len(reserved) == 1 and 0xC0000000 <= end.sa("inbound")["spi"] <= 0xCFFFFFFF

        outbound = end.sa("outbound")
        differing = mirrored(outbound, peer.sa("inbound"))
        assert set(differing) <= {"direction", "child"}, differing
        assert outbound["key"] != end.sa("inbound")["key"]
        assert outbound["suite"] == "aes256gcm16" and outbound["mode"] == "tunnel"
        assert outbound["esn"] and outbound["replay_window"] == 4096
        assert (outbound["local"], outbound["remote"]) == (end.address, peer.address)
        assert outbound["child"].startswith("net{")
        assert (outbound["connection"], outbound["peer"]) == ("peer", IDENTITIES[1 - end.number])
        assert 0 < outbound["soft_seconds"] < outbound["hard_seconds"]

        policy = end.policy()
        assert policy["selectors"] == outbound["selectors"]
        assert policy["action"] == "protect" and policy["sa"] == outbound["spi"]
        (selector,) = policy["selectors"]
        here, there = NETWORKS[end.number], NETWORKS[1 - end.number]
        assert (selector["local"], selector["remote"]) == (here, there)


def order(end: End, *steps: tuple[str, str, int]) -> list[int]:
    """Return the places in an end's requests of steps: method, direction, SPI."""
    places = []
    for method, direction, spi in steps:
        named = [
            place
            for place, (name, parameters) in enumerate(end.owner.requests)
            if name == method
            and any((sa["direction"], sa["spi"]) == (direction, spi) for sa in parameters["sas"])
        ]
        assert len(named) == 1, (method, direction, spi, named)
        places += named
    return places


def test_a_rekeyed_child_is_made_before_it_is_broken(ends: list[End]) -> None:
    for end in ends:
        end.charon.settings = {"delete_rekeyed_delay": 1}
    start(*ends)
    ends[0].charon.initiate()
    for end in ends:
        await_child(end)
    for rekeying in (ends[0], ends[1], ends[0]):
        old = [(end.sa("inbound")["spi"], end.sa("outbound")["spi"]) for end in ends]
        policies = [end.policy() for end in ends]
        old_child = ends[0].sa("inbound")["child"]
        rekeying.charon.swanctl("--rekey", "--child", "net")
        for end, (old_in, _) in zip(ends, old, strict=True):
            until(
                lambda end=end, spi=old_in: is_up(end) and ("inbound", spi) not in end.owner.sas,
                f"a new child: {end.charon.read_output()}",
            )
        for end, (old_in, old_out), policy in zip(ends, old, policies, strict=True):
            new_in, new_out = end.sa("inbound")["spi"], end.sa("outbound")["spi"]
            places = order(
                end,
                ("InstallChild", "inbound", new_in),
                ("InstallChild", "outbound", new_out),
                ("RemoveSas", "outbound", old_out),
                ("RemoveSas", "inbound", old_in),
            )
            assert places == sorted(places)
            assert end.sa("inbound")["child"] == end.sa("outbound")["child"] != old_child
            # One policy, which changed over in the step that brought the new SA.
            assert end.policy()["id"] == policy["id"]
            brought = end.owner.requests[places[1]][1]["policies"]
            assert [changed["sa"] for changed in brought] == [new_out]
            assert mirrored(end.sa("outbound"), ends[1 - end.number].sa("inbound"))["direction"]
    for end in ends:
        assert end.owner.calls("RemovePolicy") == []


def test_a_rekey_of_ike_leaves_the_child_alone(ends: list[End]) -> None:
    start(*ends)
    ends[0].charon.initiate()
    for end in ends:
        await_child(end)
    before = [dict(end.owner.sas) for end in ends]
    ends[0].charon.swanctl("--rekey", "--ike", "peer")
    for end in ends:
        end.charon.await_log("rekeyed between")
    assert [end.owner.sas for end in ends] == before
    assert all(len(end.owner.calls("InstallChild")) == 1 for end in ends)


@pytest.mark.parametrize("action", ["none", "trap"])
def test_termination_leaves_a_trap_or_no_policy_as_configured(ends: list[End], action: str) -> None:
    configure(ends, start_action=action)
    start(*ends)
    ends[0].charon.initiate()
    for end in ends:
        await_child(end)
    ends[1].charon.swanctl("--terminate", "--ike", "peer")
    for end in ends:
        until(lambda end=end: not end.owner.sas, "the SAs are removed")
        remote = NETWORKS[1 - end.number]
        wanted = {"none": {}, "trap": {remote: None}}[action]
        until(lambda end=end, wanted=wanted: end.owner.protected() == wanted, "the policy")
    # A trap's policy was there throughout.
    assert [len(end.owner.calls("RemovePolicy")) for end in ends] == [1 - (action == "trap")] * 2


def test_a_packet_without_an_sa_brings_the_child_of_its_trap(ends: list[End]) -> None:
    configure(ends, start_action="trap")
    start(*ends)
    one = ends[0]
    assert one.owner.protected() == {NETWORKS[1]: None}
    packet = {"local": "10.1.0.5", "remote": "10.2.0.7", "protocol": 6}
    ports = {"local_port": 40000, "remote_port": 443}
    one.owner.event("Acquire", policy=one.policy()["id"], **packet, **ports)
    for end in ends:
        await_child(end)
    # The same policy, not a second one.
    assert len(one.owner.policies) == 1 and not one.owner.calls("RemovePolicy")


def test_a_dead_peers_child_leaves_its_trap(ends: list[End]) -> None:
    configure(ends, of_connection={"dpd_delay": "1s"}, start_action="trap", dpd_action="trap")
    start(*ends)
    ends[0].charon.initiate()
    await_child(ends[0])
    ends[1].charon.kill()
    until(lambda: not ends[0].owner.sas, "the peer is found dead", 30)
    assert ends[0].owner.protected() == {NETWORKS[1]: None}
    ends[1].charon.start()
    ends[1].charon.initiate()
    for end in ends:
        await_child(end)


def test_charon_that_was_killed_begins_anew(ends: list[End]) -> None:
    start(*ends)
    ends[0].charon.initiate()
    await_child(ends[0])
    ends[0].charon.kill()
    assert is_up(ends[0])
    ends[0].charon.start()
    until(lambda: not ends[0].owner.sas, "the former SAs are flushed")
    takes = [call["take_over"] for call in ends[0].owner.calls("OpenSession")]
    assert takes == [False, False]
    ends[0].charon.initiate()
    await_child(ends[0])


def test_charon_that_stops_ends_its_sas_and_leaves_its_policies_closed(ends: list[End]) -> None:
    start(*ends)
    ends[0].charon.initiate()
    await_child(ends[0])
    assert ends[0].charon.stop() == 0
    # The policy holds: what it protects is closed until charon is back.
    assert ends[0].owner.sas == {} and ends[0].owner.protected() == {NETWORKS[1]: None}


def count_in_memory(pid: int, wanted: bytes) -> int:
    """Count occurrences in the writable memory of a process."""
    process = Path(f"/proc/{pid}")
    count = 0
    with (process / "mem").open("rb", 0) as memory:
        for line in (process / "maps").read_text().splitlines():
            place, access = line.split()[:2]
            if access.startswith("rw"):
                start, stop = (int(end, 16) for end in place.split("-"))
                memory.seek(start)
                count += memory.read(stop - start).count(wanted)
    return count


def part(key: str) -> str:
    """Return a part of a key: what is freed loses its first bytes to the allocator."""
    return key[32:64]


def test_no_key_is_left_in_logs_or_memory(ends: list[End]) -> None:
    start(*ends)
    one = ends[0]
    while_waiting: list[int] = []

    def look(method: str, parameters: Json) -> None:
        if method == "InstallChild":
            keys = [part(sa["key"]).encode() for sa in parameters["sas"]]

            def counts() -> list[int]:
                return [count_in_memory(one.charon.pid, key) for key in keys]

            # The request is here before the plugin has overwritten what it sent.
            holds_within(5, lambda: counts() == [1, 1])
            while_waiting.extend(counts())

    one.owner.before_answer = look
    one.charon.initiate()
    await_child(one)
    # While the gateway works, a key's text is in the request alone, not in what was sent.
    assert while_waiting == [1, 1]
    for sa in one.owner.sas.values():
        text = part(sa["key"])
        for form in (text.encode(), text.upper().encode(), bytes.fromhex(text)):
            assert count_in_memory(one.charon.pid, form) == 0
            for file in one.charon.folder.rglob("*"):
                assert not file.is_file() or form not in file.read_bytes(), file
