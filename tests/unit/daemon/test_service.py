"""The control methods of a gateway with a fake engine and a fake kernel."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esp_gw.config.load import load_config
from esp_gw.control.server import Caller
from esp_gw.crypto.aead import AfAlgStatus
from esp_gw.crypto.recommend import SIZES
from esp_gw.daemon import new_lanes
from esp_gw.engine.base import LatencyStatus
from esp_gw.errors import ControlError, EspGwError, NetworkError
from esp_gw.ledger import thread as ledger_thread
from tests.support.fakes import until
from tests.support.ledgers import MACHINE
from tests.support.requests import policy, sa
from tests.support.service_rig import Rig, restarted, start_rig

OTHER = Caller(2, 1000, 1000)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return await start_rig(tmp_path, monkeypatch)


async def test_concurrent_additions_lose_none(rig: Rig) -> None:
    numbers = range(1, 9)
    await asyncio.gather(
        *(rig.call("AddSa", **sa(number)) for number in numbers),
        *(rig.call("AddPolicy", **policy(number)) for number in numbers),
        rig.call("Reload"),
    )
    assert rig.names() == {f"n{number}" for number in numbers}
    again = await restarted(rig)
    assert again.names() == {f"n{number}" for number in numbers}
    assert len(again.engine.policies) == 1 + len(numbers)


async def test_one_of_several_equal_concurrent_additions_succeeds(rig: Rig) -> None:
    results = await asyncio.gather(
        *(rig.call("AddSa", **sa(1)) for _ in range(3)), return_exceptions=True
    )
    codes = [result.code for result in results if isinstance(result, ControlError)]
    assert codes == ["AlreadyExists", "AlreadyExists"]
    assert rig.names() == {"n1"}


async def test_an_addition_that_conflicts_with_a_new_configuration_is_left_out_until_it_fits(
    rig: Rig,
) -> None:
    await rig.call("AddSa", **sa(1, direction="inbound"))
    await rig.call("AddSa", **sa(2))
    spi = load_config(rig.config).sas[1].spi
    rig.edit(lambda config: config["tunnels"]["pi-b"]["inbound"].update(spi=0x8001))
    await rig.call("Reload")
    assert rig.names() == {"n2"}
    (warning,) = await rig.warnings()
    assert "'n1'" in warning
    again = await restarted(rig)
    assert again.names() == {"n2"}
    assert await again.warnings() == [warning]
    again.edit(lambda config: config["tunnels"]["pi-b"]["inbound"].update(spi=spi))
    await again.call("Reload")
    assert again.names() == {"n1", "n2"}
    assert await again.warnings() == []


async def test_a_policy_placed_before_a_missing_one_is_left_out_until_that_is_back(
    rig: Rig,
) -> None:
    await rig.call("AddPolicy", **policy(1, before="pi-b"))
    await rig.call("AddPolicy", **policy(2, before="p1"))
    assert [p.name for p in rig.engine.policies] == ["p2", "p1", "pi-b"]
    text = rig.config.read_text()
    rig.edit(lambda config: config.update(tunnels={}))
    await rig.call("Reload")
    assert rig.engine.policies == ()
    assert len(await rig.warnings()) == 2
    rig.config.write_text(text)
    await rig.call("Reload")
    assert [p.name for p in rig.engine.policies] == ["p2", "p1", "pi-b"]
    assert await rig.warnings() == []


async def test_an_addition_that_conflicts_with_another_is_refused(rig: Rig) -> None:
    await rig.call("AddSa", **sa(1))
    before = rig.store.path.read_bytes()
    for wrong in (sa(2, key=f"{1:040x}"), sa(2, spi=0x8001)):
        with pytest.raises(ControlError) as error:
            await rig.call("AddSa", **wrong)
        assert error.value.code == "Refused"
    assert rig.names() == {"n1"}
    assert rig.store.path.read_bytes() == before


async def test_an_addition_that_can_not_be_stored_is_rolled_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.call("AddSa", **sa(1))
    before = (dict(rig.engine.sas), rig.kernel.network)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("esp_gw.config.added.replace", full)
    for method, fields in (("AddSa", sa(2)), ("AddPolicy", policy(2)), ("DeleteSa", sa(1))):
        with pytest.raises(EspGwError, match="No space left"):
            await rig.call(method, **fields)
        assert rig.kernel.network == before[1]
        assert rig.engine.sas == before[0]
    monkeypatch.undo()
    monkeypatch.setattr(ledger_thread, "machine_identity", lambda: MACHINE)
    await rig.call("AddSa", **sa(2))
    assert rig.names() == {"n1", "n2"}


async def test_an_addition_that_the_kernel_refuses_is_neither_installed_nor_stored(
    rig: Rig,
) -> None:
    await rig.call("AddSa", **sa(1))
    kept, network = rig.store.path.read_bytes(), rig.kernel.network
    rig.kernel.fail_at(1)
    with pytest.raises(NetworkError):
        await rig.call(
            "AddPolicy", **policy(1, action="protect", sa="n1", local_ts=["10.1.0.0/24"])
        )
    assert rig.kernel.network == network
    assert rig.store.path.read_bytes() == kept
    assert [p.name for p in rig.engine.policies] == ["pi-b"]


async def test_a_broken_configuration_changes_nothing(rig: Rig) -> None:
    await rig.call("AddSa", **sa(1))
    before = (dict(rig.engine.sas), rig.kernel.network, rig.engine.policies)
    good = rig.config.read_text()
    for text in (good + "\ncolour: blue\n", "[", good.replace("192.0.2.2", "192.0.2.2.2")):
        rig.config.write_text(text)
        with pytest.raises(ControlError) as refused:
            await rig.call("Reload")
        assert refused.value.code == "Refused"
        assert refused.value.what.startswith(f"{rig.config}:")
        assert (rig.engine.sas, rig.kernel.network, rig.engine.policies) == before
    rig.config.write_text(good)
    assert (await rig.call("Reload"))["changes"] == []


async def test_a_reload_that_failed_is_a_warning_until_one_succeeds(rig: Rig) -> None:
    assert rig.service.status_text() == "2 SAs, engine fake"
    good = rig.config.read_text()
    rig.config.write_text(good + "\ncolour: blue\ntaste: sweet\n")
    with pytest.raises(ControlError, match=r"colour: .* \(and 1 more\); nothing has changed"):
        await rig.call("Reload")
    warning, *_ = (await rig.call("GetStatus"))["warnings"]
    assert warning.startswith(f"the configuration was not reloaded: {rig.config}:")
    assert rig.service.status_text() == f"2 SAs, engine fake; {warning}"
    rig.config.write_text(good)
    await rig.call("Reload")
    assert warning not in (await rig.call("GetStatus"))["warnings"]
    assert rig.service.status_text() == "2 SAs, engine fake"


async def test_a_reload_for_another_configuration_is_refused(rig: Rig, tmp_path: Path) -> None:
    link = tmp_path / "link.yaml"
    link.symlink_to(rig.config)
    assert (await rig.call("Reload", config=str(link)))["changes"] == []
    with pytest.raises(ControlError, match=r"reads .*gateway\.yaml, not /etc/other") as refused:
        await rig.call("Reload", config="/etc/other")
    assert refused.value.code == "InvalidParameter"
    assert rig.service.status_text() == "2 SAs, engine fake"


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda config: config["gateway"].update(workers=2), "gateway.workers"),
        (lambda config: config["gateway"].update(pin_workers=True), "gateway.pin_workers"),
        (lambda config: config["gateway"].update(latency="low"), "gateway.latency"),
        (lambda config: config["gateway"].update(offload={"tso": False}), "gateway.offload"),
        (lambda config: config.update(crypto={"provider": "openssl"}), "crypto.provider"),
        (lambda config: config.update(crypto={"offload": "off"}), "crypto.offload"),
    ],
)
async def test_engine_settings_are_fixed_while_it_runs(
    rig: Rig, change: Callable[[dict[str, Any]], object], names: str
) -> None:
    rig.edit(change)
    with pytest.raises(ControlError, match=f"{names} can't change") as error:
        await rig.call("Reload")
    assert "restart" in str(error.value.hint)


async def test_status_reports_how_the_engine_works(rig: Rig) -> None:
    status = await rig.call("GetStatus")
    assert (status["engine"], status["workers"], status["pinned"]) == ("fake", 1, False)
    assert (status["latency"]["setting"], status["aes"]) == ("normal", "AES-NI")
    assert status["provider"] == {"aes256gcm16": "OpenSSL 3.6.0"}
    assert status["offload"] == {
        "udp_gso": {"in_use": True, "why": ""},
        "merge": {"in_use": False, "why": "switched off"},
    }


async def test_a_latency_without_effect_is_a_warning_of_the_status(rig: Rig) -> None:
    rig.engine.latency = LatencyStatus("low", why="/dev/cpu_dma_latency: Permission denied; ask")
    status = await rig.call("GetStatus")
    assert status["latency"] == {
        "setting": "low",
        "held": False,
        "rest_ms": 40,
        "why": "/dev/cpu_dma_latency: Permission denied; ask",
    }
    assert (
        "'latency: low' has no effect: /dev/cpu_dma_latency: Permission denied; ask"
        in (status["warnings"])
    )


async def test_an_addition_whose_suite_the_provider_lacks_is_left_out_with_a_warning(
    rig: Rig, tmp_path: Path
) -> None:
    await rig.call("AddSa", **sa(1, suite="aes256gcm8", key=f"{7:072x}"))
    assert rig.names() == {"n1"}
    await rig.gateway.stop()
    rig.edit(lambda config: config.update(crypto={"provider": "aws-lc"}))
    again = Rig(tmp_path)
    await again.start()
    assert again.names() == set()
    (warning,) = await again.warnings()
    assert "'n1'" in warning
    assert "aws-lc has no aes256gcm8" in warning
    with pytest.raises(ControlError, match="aws-lc has no aes256gcm12"):
        await again.call("AddSa", **sa(2, suite="aes256gcm12", key=f"{8:072x}"))


async def test_every_read_method_works_during_a_reload(rig: Rig) -> None:
    text = rig.config.read_text()
    for _ in range(3):
        rig.edit(lambda config: config.update(tunnels={}))
        reload = asyncio.create_task(rig.call("Reload"))
        while not reload.done():
            for method in ("GetStatus", "ListSas", "ListPolicies", "ListTunnels", "GetStats"):
                await rig.call(method)
            await asyncio.sleep(0)
        assert (await rig.call("ListTunnels"))["tunnels"] == []
        rig.config.write_text(text)
        await rig.call("Reload")
        assert len((await rig.call("ListTunnels"))["tunnels"]) == 1


async def test_a_tunnel_of_several_sas_is_listed_as_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_lanes, "INTERVAL", 0.01)
    folder = rig.config.parent / "keys"
    for end in ("out", "in"):
        first = (folder / f"pi-b.{end}.key").read_text()
        (folder / f"pi-b.{end}.key").write_text(first + {"out": "aa", "in": "bb"}[end] * 36)
    rig.edit(lambda config: config["tunnels"]["pi-b"].update(sas=2))
    assert sorted((await rig.call("Reload"))["changes"]) == [
        "sa pi-b/in changed",
        "sa pi-b/in.2 installed",
        "sa pi-b/out changed",
        "sa pi-b/out.2 installed",
    ]
    await rig.health.look(asyncio.get_running_loop().time())
    rig.engine.used = {"pi-b/out": 1, "pi-b/out.2": 20, "pi-b/in.2": 300}
    await rig.health.look(asyncio.get_running_loop().time())
    (tunnel,) = (await rig.call("ListTunnels"))["tunnels"]
    assert tunnel["sas"] == ["pi-b/out", "pi-b/in", "pi-b/out.2", "pi-b/in.2"]
    assert (tunnel["packets_out"], tunnel["packets_in"], tunnel["state"]) == (21, 300, "up")
    (policy,) = (await rig.call("ListPolicies"))["policies"]
    assert policy["sas"] == ["pi-b/out", "pi-b/out.2"]
    rig.engine.flows = {"pi-b/out": 3}
    (tunnel,) = (await rig.call("ListTunnels"))["tunnels"]
    assert tunnel["lanes"] == [], "the new lane waits, and an only one has no count"
    await asyncio.sleep(0.05)
    rig.engine.receive("pi-b/in.2", 1)
    await until(lambda: len(rig.engine.policies[0].sas) == 2)
    lanes = [{"sa": "pi-b/out", "flows": 3}, {"sa": "pi-b/out.2", "flows": 0}]
    (tunnel,) = (await rig.call("ListTunnels"))["tunnels"]
    assert tunnel["lanes"] == lanes
    assert (await rig.call("GetStats"))["lanes"] == {"pi-b": lanes}
    assert (await rig.call("GetStatus"))["lanes"]["laned"] == 2
    found = {sa["name"]: sa["lane"] for sa in (await rig.call("ListSas"))["sas"]}
    assert found == {"pi-b/out": 0, "pi-b/in": 0, "pi-b/out.2": 1, "pi-b/in.2": 1}


async def test_a_tunnel_of_one_sa_has_no_lanes(rig: Rig) -> None:
    (tunnel,) = (await rig.call("ListTunnels"))["tunnels"]
    assert tunnel["lanes"] == []
    assert (await rig.call("GetStats"))["lanes"] == {}
    assert (await rig.call("GetStatus"))["lanes"]["laned"] == 0


async def test_a_dry_run_says_what_a_reload_would_change_and_changes_nothing(rig: Rig) -> None:
    def change(config: dict[str, Any]) -> None:
        config["tunnels"]["pi-b"]["remote_ts"] = ["10.2.0.0/24", "10.3.0.0/24"]

    rig.edit(change)
    before = dict(rig.engine.sas)
    for _ in range(2):
        reply = await rig.call("CheckReload", config=str(rig.config))
        assert reply == {"changes": ["remote_ts of pi-b: + 10.3.0.0/24"]}
    assert rig.engine.sas == before
    await rig.call("Reload")
    assert await rig.call("CheckReload") == {"changes": []}
    with pytest.raises(ControlError, match="reads"):
        await rig.call("CheckReload", config="/etc/other")
    rig.config.write_text("tunnels: 1\n")
    with pytest.raises(ControlError, match="esp-gw config check"):
        await rig.call("CheckReload")


async def test_keys_are_revealed_to_root_only_and_by_no_other_method(rig: Rig) -> None:
    await rig.call("AddSa", **sa(1))
    key = f"{1:040x}"
    assert (await rig.call("GetSa", name="n1", reveal_keys=True))["sa"]["key"] == key
    with pytest.raises(ControlError) as error:
        await rig.call("GetSa", OTHER, name="n1", reveal_keys=True)
    assert error.value.code == "PermissionDenied"
    for asked in ("GetStatus", "ListSas", "ListPolicies", "ListTunnels", "GetStats"):
        assert key not in str(await rig.call(asked))
    assert "key" not in (await rig.call("GetSa", name="n1"))["sa"]
    # Only JSON true reveals the key, no other truthy value.
    assert "key" not in (await rig.call("GetSa", name="n1", reveal_keys=1))["sa"]


async def test_a_deletion_survives_a_restart_and_its_key_continues(rig: Rig) -> None:
    await rig.call("AddSa", **sa(1))
    rig.engine.used["n1"] = 40
    await rig.call("DeleteSa", name="n1")
    again = await restarted(rig)
    assert again.names() == set()
    await again.call("AddSa", **sa(1, name="other", spi=0x9000))
    assert again.engine.leases["other"].first == 41


@pytest.mark.parametrize(
    ("method", "fields", "code"),
    [
        ("DeleteSa", {"name": "nobody"}, "NotFound"),
        ("DeleteSa", {"name": "pi-b/out"}, "Refused"),
        ("DeleteSa", {}, "InvalidParameter"),
        ("DeleteSa", {"name": ["n1"]}, "InvalidParameter"),
        ("DeletePolicy", {"name": "nobody"}, "NotFound"),
        ("DeletePolicy", {"name": "pi-b"}, "Refused"),
        ("GetSa", {"name": "nobody"}, "NotFound"),
        ("AddPolicy", policy(1, before="nobody"), "NotFound"),
        ("AddPolicy", policy(1, action="protect", sa="nobody"), "Refused"),
        ("AddPolicy", policy(1, name="pi-b"), "AlreadyExists"),
        ("AddSa", sa(1, name="pi-b/out"), "AlreadyExists"),
        ("AddSa", sa(1, key="00"), "InvalidParameter"),
        ("AddSa", sa(1, colour="blue"), "InvalidParameter"),
        ("AddSa", {}, "InvalidParameter"),
    ],
)
async def test_an_impossible_request_is_refused_with_its_error_code(
    rig: Rig, method: str, fields: dict[str, object], code: str
) -> None:
    before = (dict(rig.engine.sas), rig.kernel.network, rig.engine.policies)
    with pytest.raises(ControlError) as error:
        await rig.call(method, **fields)
    assert error.value.code == code
    assert (rig.engine.sas, rig.kernel.network, rig.engine.policies) == before


PROTECT: dict[str, object] = {"action": "protect", "local_ts": ["10.1.0.0/24"]}


@pytest.mark.parametrize(
    ("method", "fields", "says"),
    [
        (
            "DeleteSa",
            {"name": "n1"},
            "the policy p1 needs the SA n1; run 'esp-gw policy delete p1' first",
        ),
        (
            "DeletePolicy",
            {"name": "p1"},
            "the policy p2 is placed before p1; run 'esp-gw policy delete p2' first",
        ),
        (
            "FlushSas",
            {},
            "the policy p2 is placed before p1; run 'esp-gw policy delete p2' first",
        ),
        (
            "AddSa",
            sa(3, key=f"{1:040x}"),
            "SA n3: has the same key as n1 (two outbound), which would repeat an IV: "
            "give every SA its own key",
        ),
        (
            "AddSa",
            sa(3, spi=0x8001),
            "SA n3: SPI 0x8001 to 192.0.2.2 is already used by n1: "
            "a peer needs a different SPI for each SA",
        ),
        (
            "AddSa",
            sa(1),
            "the SA n1 exists already; choose another name, or delete it first",
        ),
        (
            "AddPolicy",
            policy(1),
            "the policy p1 exists already; choose another name, or delete it first",
        ),
        (
            "AddPolicy",
            policy(3, **PROTECT, sa="nobody"),
            "there is no SA nobody for the policy p3; "
            "add it first, or name one of 'esp-gw sa list'",
        ),
        (
            "AddPolicy",
            policy(3, **PROTECT, sa="n1"),
            "policy p3: the policy matches 10.1.0.0/24 to 10.103.0.0/16, "
            "more than its SA n1 may carry",
        ),
    ],
)
async def test_a_refusal_names_the_obstacle_and_the_remedy(
    rig: Rig, method: str, fields: dict[str, object], says: str
) -> None:
    await rig.call("AddSa", **sa(1))
    await rig.call("AddPolicy", **policy(1, **PROTECT, sa="n1"))
    await rig.call("AddPolicy", **policy(2, before="p1"))
    before = (dict(rig.engine.sas), rig.kernel.network, rig.engine.policies)
    with pytest.raises(ControlError) as error:
        await rig.call(method, **fields)
    assert str(error.value) == says
    assert (rig.engine.sas, rig.kernel.network, rig.engine.policies) == before


async def test_obstacles_can_be_deleted_in_the_order_that_the_hints_give(rig: Rig) -> None:
    await rig.call("AddSa", **sa(1))
    await rig.call("AddPolicy", **policy(1, **PROTECT, sa="n1"))
    await rig.call("AddPolicy", **policy(2, before="p1"))
    for name in ("p2", "p1"):
        await rig.call("DeletePolicy", name=name)
    await rig.call("DeleteSa", name="n1")
    assert rig.names() == set()


async def test_status_hints_at_a_faster_suite_while_a_tunnel_has_the_slow_one(
    rig: Rig,
) -> None:
    async def hints() -> list[str]:
        status = await rig.call("GetStatus")
        return [text for text in status["warnings"] if "times as long" in text]

    assert await hints() == []
    rig.figures["chacha20poly1305"] = dict.fromkeys(SIZES, 300.0)
    rig.edit(lambda config: config["tunnels"]["pi-b"].update(suite="aes256gcm12"))
    await rig.call("Reload")
    (hint,) = await hints()
    assert hint.startswith("tunnel pi-b: the suite aes256gcm12 takes 3.3 times as long as chacha")
    rig.edit(lambda config: config["tunnels"]["pi-b"].update(suite="chacha20poly1305"))
    await rig.call("Reload")
    assert await hints() == []


async def test_a_suite_that_the_kernel_seals_is_judged_by_the_kernels_time(rig: Rig) -> None:
    rig.engine.af_alg["aes256gcm12"] = AfAlgStatus(True, "switched on")
    rig.kernel_figures["aes256gcm12"] = dict.fromkeys(SIZES, 7000.0)
    rig.edit(lambda config: config["tunnels"]["pi-b"].update(suite="aes256gcm12"))
    await rig.call("Reload")
    status = await rig.call("GetStatus")
    assert [text for text in status["warnings"] if "takes 7.0 times as long" in text]
