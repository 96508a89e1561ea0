"""The plugin kernel-esp-gw when the gateway refuses a part, or has forgotten what it was told."""

from __future__ import annotations

from tests.support.fake_owner import Json
from tests.support.ike_rig import End, await_child, child, connection, is_up, start
from tests.support.labtools import until

TRAPPED = [f"10.2.{number}.0/24" for number in range(3)]


def trap(end: End, networks: list[str]) -> None:
    """Configure a trap for each of these remote networks."""
    children = {
        f"net-{number}": child(end.number, remote_ts=network, start_action="trap")
        for number, network in enumerate(networks)
    }
    end.charon.configure({"peer": connection(end.number, children)}, {})


def test_a_refused_policy_takes_no_other_along_and_is_removed_later(ends: list[End]) -> None:
    one, refused = ends[0], TRAPPED[1]
    trap(one, TRAPPED)
    start(one)
    until(lambda: set(one.owner.protected()) == {*TRAPPED}, "the traps")
    one.owner.stop()
    for name, policy in [*one.owner.policies.items()]:
        if policy["selectors"][0]["remote"] == refused:
            policy["priority"] = 1
        else:
            del one.owner.policies[name]
    one.owner.refused_networks.add(refused)
    one.owner.start()
    until(lambda: set(one.owner.protected()) == {*TRAPPED}, "the other traps", 20)
    one.charon.await_log(f"refused: {refused} is another policy's")
    # The gateway's policy of that name goes with the trap.
    trap(one, [TRAPPED[0]])
    one.charon.load()
    until(lambda: set(one.owner.protected()) == {TRAPPED[0]}, "the others are gone", 20)


def test_a_child_whose_sa_has_expired_meanwhile_is_negotiated_anew(up: list[End]) -> None:
    one = up[0]
    before = set(one.owner.sas)
    one.owner.stop()
    one.owner.counters["outbound", one.sa("outbound")["spi"]] = {"expired": True}
    one.owner.start()
    until(lambda: is_up(one) and not before & set(one.owner.sas), "a new child", 30)
    await_child(up[1])


def test_a_key_goes_out_once_though_the_gateway_forgets_it(ends: list[End]) -> None:
    start(*ends)
    one = ends[0]

    def forget(method: str, parameters: Json) -> None:
        if method in one.owner.swallow:
            one.owner.sas.clear()
            one.owner.policies.clear()

    one.owner.before_answer = forget
    one.owner.swallow.add("InstallChild")
    initiate = ("--initiate", "--child", "net", "--timeout", "20")
    failed = one.charon.swanctl(*initiate, check=False)
    assert failed.returncode != 0
    one.charon.await_log("could not be installed: its keys may be in use")
    one.charon.swanctl(*initiate)
    for end in ends:
        await_child(end)
    keys = [sa["key"] for call in one.owner.calls("InstallChild") for sa in call["sas"]]
    assert len(keys) == len(set(keys)) == 4


def test_a_session_whose_events_cannot_be_watched_is_told_in_words(ends: list[End]) -> None:
    one = ends[0]

    def end_others(method: str, parameters: Json) -> None:
        if len(one.owner.calls("OpenSession")) == 1:
            one.owner.end_others()

    one.owner.before_answer = end_others
    start(one)
    one.charon.await_log("esp_gw: no session with the gateway: no watch: Broken pipe")
    one.charon.await_log("esp_gw: session with the gateway at")


def test_hundreds_of_sas_that_charon_does_not_know_are_removed(up: list[End]) -> None:
    one = up[0]
    known = set(one.owner.sas)
    one.owner.stop()
    template = one.sa("outbound")
    for number in range(600):
        key = (number + 1).to_bytes(36).hex()
        stranger = {**template, "spi": 0xC5000000 + number, "key": key}
        one.owner.sas["outbound", stranger["spi"]] = stranger
    one.owner.start()
    until(lambda: set(one.owner.sas) == known, "the strangers are gone", 20)


def test_strangers_that_the_gateway_does_not_remove_are_logged(up: list[End]) -> None:
    one = up[0]
    one.owner.stop()
    stranger = {**one.sa("outbound"), "spi": 0xC5000000, "key": "5a" * 36}
    one.owner.sas["outbound", 0xC5000000] = stranger
    one.owner.refuse["RemoveSas"] = "they stay"
    one.owner.start()
    one.charon.await_log("esp_gw: 1 SAs could not be removed: they stay")


def test_the_spi_of_a_child_that_fails_is_released(ends: list[End]) -> None:
    start(*ends)
    one, two = ends
    two.owner.refuse["InstallChild"] = "no more"
    failed = one.charon.swanctl("--initiate", "--child", "net", "--timeout", "20", check=False)
    assert failed.returncode != 0
    for end in ends:
        assert len(end.owner.calls("ReserveSpi")) == 1
        until(lambda end=end: not end.owner.reserved, "no SPI is reserved", 20)
        assert len(end.owner.calls("ReleaseSpi")) == 1


def test_a_gateway_of_the_second_version_is_not_asked_to_release_spis(ends: list[End]) -> None:
    one, two = ends
    two.owner.version = 2
    start(*ends)
    two.owner.refuse["InstallChild"] = "no more"
    failed = one.charon.swanctl("--initiate", "--child", "net", "--timeout", "20", check=False)
    assert failed.returncode != 0
    del two.owner.refuse["InstallChild"]
    one.charon.initiate()
    for end in ends:
        await_child(end)
    assert two.owner.calls("ReleaseSpi") == []
