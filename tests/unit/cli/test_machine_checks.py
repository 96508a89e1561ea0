"""`esp-gw doctor` on the machine itself: a line for each thing, and what to run."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from esp_gw.cli import machine_checks, outgoing
from esp_gw.cli.finding import Finding, State
from esp_gw.cli.machine_checks import machine_findings
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.errors import EspGwError, NetworkError
from esp_gw.model import Action, Policy, Selector
from esp_gw.network.xfrm_policies import KernelPolicy
from esp_gw.tune.places import Places
from tests.support.fake_machine import FakeMachine, container, pc, pi4, pi5

OURS, THEIRS, OTHER = (ip_network(text) for text in ("10.1.0.0/24", "10.2.0.0/24", "10.9.0.0/16"))


def use(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, card: str = "eth0") -> None:
    monkeypatch.setattr(machine_checks, "ROOT", machine.root)
    monkeypatch.setattr(
        machine_checks, "Places", lambda root: Places(root, lambda: machine.ethtool)
    )
    monkeypatch.setattr(outgoing, "outgoing_cards", lambda *_: [card])
    monkeypatch.setattr(machine_checks, "kernel_policies", list)


def lines(desired: Desired | None = None, gateway: int | None = None) -> list[str]:
    return [
        f"{each.state} {each.what}: {each.found}" + (f"; {each.todo}" if each.todo else "")
        for each in machine_findings(desired, gateway)
    ]


def test_a_pi_4_as_it_comes_can_be_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(pi4(tmp_path), monkeypatch)
    assert [line for line in lines() if "EEE" not in line] == [
        "ok card: eth0, driver bcmgenet: the kernel cuts batches for it, merges what it receives",
        "warning clock: policy0 governor ondemand, better performance; run 'sudo esp-gw tune'",
        "ok interrupts: eth0 eth0#0 irq_cpus f; eth0 eth0#1 irq_cpus f",
        "warning steering: eth0 rx-0 rps_cpus 0, better e; eth0 rx-0 rps_flow_cnt 0, better 4096; "
        "rps_sock_flow_entries 0, better 4096 and 1 more; run 'sudo esp-gw tune'",
        "ok memory: huge_pages madvise",
        "warning card: eth0 interrupts for each packet, also under load; try 'ethtool -C eth0 "
        "adaptive-rx on': it may change the times that 'ethtool -c eth0' shows now",
        "ok buffers: 4 MiB for each outer socket, whatever net.core.rmem_max is; "
        "2 datagrams lost since the boot",
        "ok writes: mmcblk0: 512.00 MiB a day",
    ]


@pytest.mark.parametrize(
    ("kind", "card", "topics"),
    [
        (pi5, "eth0", ["steering", "card", "card"]),
        (pc, "ens3", ["interrupts", "steering"]),
        (container, "eth0", ["steering", "card"]),
    ],
)
def test_warnings_of_other_machines(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[FakeMachine],
    card: str,
    topics: list[str],
) -> None:
    use(kind(tmp_path), monkeypatch, card)
    found = list(machine_findings(None, None))
    assert [each.what for each in found if each.state is State.WARNING] == topics
    assert all(each.todo for each in found if each.state is State.WARNING)
    assert all("\n" not in each.found + each.todo for each in found)


def test_what_the_gateway_has_written_is_told_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = pi4(tmp_path)
    use(machine, monkeypatch)
    monkeypatch.setattr(machine_checks, "_written_by", lambda process: process)
    assert "ok writes: mmcblk0: 512.00 MiB a day; 77 B by the gateway since its start" in lines(
        None, 77
    )
    machine.write("proc/uptime", "60 60")
    told = "ok writes: mmcblk0: 1.00 GiB since the boot, less than 1 h ago"
    assert told in lines()


def test_writes_of_a_process_are_those_of_the_kernel(tmp_path: Path) -> None:
    assert machine_checks._written_by(None) is None
    assert machine_checks._written_by(2**22 + 1) is None


def desired() -> Desired:
    policy = Policy("office", Action.PROTECT, (Selector(OURS, THEIRS),))
    return Desired(GatewaySettings(), policies=(policy,))


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (
            KernelPolicy("out", OURS, THEIRS, False),
            "the kernel itself protects what goes from 10.1.0.0/24 to 10.2.0.0/24 (out), before "
            "the policy office of the gateway",
        ),
        (
            KernelPolicy("fwd", ip_network("10.2.0.0/16"), ip_network("10.0.0.0/8"), True),
            "the kernel itself drops what goes from 10.2.0.0/16 to 10.0.0.0/8 (fwd), before the "
            "policy office of the gateway",
        ),
        (KernelPolicy("out", OURS, OTHER, False), ""),
        (KernelPolicy("in", OURS, THEIRS, False), ""),
        (KernelPolicy("out", ip_network("::/0"), ip_network("::/0"), False), ""),
    ],
)
def test_policies_of_the_kernel_that_take_the_gateways_packets_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: KernelPolicy, told: str
) -> None:
    use(container(tmp_path), monkeypatch)
    monkeypatch.setattr(machine_checks, "kernel_policies", lambda: [policy])
    (found,) = [each for each in machine_findings(desired(), None) if each.what == "xfrm"]
    if told:
        todo = "see 'ip xfrm policy'; 'esp-gw sa import' takes such a gateway over"
        assert found == Finding(State.WARNING, "xfrm", told, todo)
    else:
        assert found.state is State.OK


def test_policies_that_may_not_be_read_and_a_kernel_without_any_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> list[KernelPolicy]:
        raise NetworkError("Operation not permitted")

    use(container(tmp_path), monkeypatch)
    assert not any("xfrm" in line for line in lines(desired()))
    monkeypatch.setattr(machine_checks, "kernel_policies", refuse)
    assert not any("xfrm" in line for line in lines(desired()))


def test_a_kernel_that_can_not_be_asked_for_routes_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> list[str]:
        raise EspGwError("the kernel can't be asked for routes", where="netlink")

    use(container(tmp_path), monkeypatch)
    monkeypatch.setattr(machine_checks, "around", refuse)
    assert lines() == ["warning card: netlink: the kernel can't be asked for routes"]
