"""`esp-gw sa import`: from the command over the control socket to the ledger and the engine."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from esp_gw.cli.main import main
from esp_gw.control.server import ControlServer
from esp_gw.engine.base import LeaseLow
from esp_gw.ledger.ledger import LEASE_ESN, Ledger
from esp_gw.model import KeyMaterial, Lease
from esp_gw.xfrm.takeover import MARGIN
from tests.support.fakes import until
from tests.support.ledgers import MACHINE
from tests.support.service_rig import Rig, restarted, start_rig

KEY_OUT, KEY_IN = "a1" * 20, "b2" * 20
STATES = f"""\
src 192.0.2.1 dst 192.0.2.9
\tproto esp spi 0x00001001 reqid 7 mode tunnel
\treplay-window 0 flag esn
\taead rfc4106(gcm(aes)) 0x{KEY_OUT} 128
\tanti-replay esn context:
\t seq-hi 0x0, seq 0x0, oseq-hi 0x0, oseq 0x30
\t replay_window 128, bitmap-length 4
\t 00000000 00000000 00000000 00000000
src 192.0.2.9 dst 192.0.2.1
\tproto esp spi 0x00001002 reqid 7 mode tunnel
\treplay-window 32
\taead rfc4106(gcm(aes)) 0x{KEY_IN} 128
\tanti-replay context: seq 0x20, oseq 0x0, bitmap 0xffffffff
"""
POLICIES = """\
src 10.1.0.0/24 dst 10.9.0.0/24
\tdir out priority 100 ptype main
\ttmpl src 192.0.2.1 dst 192.0.2.9
\t\tproto esp reqid 7 mode tunnel
src 10.9.0.0/24 dst 10.1.0.0/24
\tdir in priority 100 ptype main
\ttmpl src 192.0.2.9 dst 192.0.2.1
\t\tproto esp reqid 7 mode tunnel
"""
OUT, IN = "xfrm-00001001/out", "xfrm-00001002/in"
FIRST = 0x30 + MARGIN + 1


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    rig = await start_rig(tmp_path, monkeypatch)
    monkeypatch.setenv("ESP_GW_SOCKET", str(tmp_path / "control.sock"))
    server = ControlServer(tmp_path / "control.sock", rig.service.handlers())
    await server.start()
    (tmp_path / "dump").write_text(STATES + POLICIES)
    yield rig
    await server.close()


class Outcome(SimpleNamespace):
    status: int
    out: str
    err: str


async def command(capsys: pytest.CaptureFixture[str], *args: object) -> Outcome:
    """Run the command and return its output, which must hold no key."""
    status = await asyncio.to_thread(main, [str(arg) for arg in args])
    out, err = capsys.readouterr()
    for key in (KEY_OUT, KEY_IN):
        assert key[:16] not in out + err
    return Outcome(status=status, out=out, err=err)


def ledger_of(rig: Rig) -> Ledger:
    return Ledger.open(rig.ledger, MACHINE)


async def test_an_import_is_complete_and_survives_a_restart(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = await command(capsys, "sa", "import", tmp_path / "dump")
    assert (done.status, done.err) == (0, "")
    assert rig.names() == {OUT, IN}
    assert [policy.name for policy in rig.engine.policies] == ["pi-b", "xfrm-00001001"]
    assert rig.engine.leases[OUT].first == FIRST
    assert rig.engine.floors[IN] == 0x20
    assert rig.engine.sas[OUT].last_seq == 2**32 - 1
    rig.engine.used[OUT] = 5
    again = await restarted(rig)
    assert again.names() == {OUT, IN}
    assert again.engine.leases[OUT].first >= FIRST
    assert again.engine.floors[IN] == 0x20


async def test_the_numbers_are_on_disk_before_the_engine_gets_them(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[int]] = []

    def install(_sa: object, _lease: Lease) -> None:
        shutil.copy(rig.ledger, tmp_path / "copy.db")
        copy = Ledger.open(tmp_path / "copy.db", MACHINE)
        seen.append({entry.seq for entry in copy.entries()})
        copy.close()

    monkeypatch.setattr(rig.engine, "install_outbound", install)
    await command(capsys, "sa", "import", tmp_path / "dump")
    assert len(seen) == 1
    assert any(seq > FIRST for seq in seen[0])
    assert 0x20 in seen[0]


async def test_checking_changes_nothing(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = await command(capsys, "sa", "import", "--check", tmp_path / "dump")
    assert done.status == 0
    assert f"would import SA {OUT}\n" in done.out
    assert rig.names() == set()
    assert rig.store.load().sas == ()


async def test_states_and_policies_may_be_separate_and_from_stdin(
    rig: Rig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "policies").write_text(POLICIES)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(STATES.encode())))
    done = await command(capsys, "sa", "import", "--json", "-", tmp_path / "policies")
    # The gateway runs in the same process, so its log precedes the document.
    document = json.loads(done.out[done.out.index("{") :])
    (note,) = document.pop("notes")
    assert document == {"sas": [OUT, IN], "policies": ["xfrm-00001001"]}
    assert note.startswith("stdin:1: ")
    assert rig.names() == {OUT, IN}


async def assert_nothing_imported(rig: Rig, done: Outcome, expected: str) -> None:
    assert done.status == 1
    assert expected in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert rig.names() == set()
    assert [policy.name for policy in rig.engine.policies] == ["pi-b"]
    assert rig.store.load().sas == ()


async def test_one_refused_line_refuses_the_whole_import(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (STATES + POLICIES).replace("\treplay-window 32\n", "\treplay-window 32 flag noecn\n")
    (tmp_path / "dump").write_text(text)
    done = await command(capsys, "sa", "import", tmp_path / "dump")
    await assert_nothing_imported(rig, done, f"{tmp_path / 'dump'}:11: the flag 'noecn'")


async def test_an_spi_of_the_configuration_refuses_the_whole_import(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spi = rig.engine.sas["pi-b/in"].spi
    (tmp_path / "dump").write_text((STATES + POLICIES).replace("0x00001002", f"0x{spi:08x}"))
    for extra in (["--check"], []):
        done = await command(capsys, "sa", "import", *extra, tmp_path / "dump")
        fault = f"SPI {spi:#x} is already used by the inbound SA pi-b/in"
        await assert_nothing_imported(rig, done, f"xfrm-{spi:08x}/in: {fault}")


async def test_a_key_used_in_the_other_direction_refuses_the_whole_import(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await command(capsys, "sa", "import", tmp_path / "dump")
    await rig.call("FlushSas")
    text = (STATES + POLICIES).replace(KEY_OUT, "c3" * 20).replace(KEY_IN, KEY_OUT)
    (tmp_path / "dump").write_text(text)
    done = await command(capsys, "sa", "import", tmp_path / "dump")
    await assert_nothing_imported(rig, done, "this key and salt was used for outbound traffic")


async def test_a_key_used_further_here_continues_from_there(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await command(capsys, "sa", "import", tmp_path / "dump")
    rig.engine.used[OUT] = far = FIRST + 4000
    rig.engine.used[IN] = 0x5000
    await rig.call("FlushSas")
    done = await command(capsys, "sa", "import", tmp_path / "dump")
    assert done.status == 0
    assert rig.engine.leases[OUT].first >= far
    assert rig.engine.floors[IN] == 0x5000


async def test_a_refusal_by_the_kernel_refuses_the_whole_import(
    rig: Rig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rig.kernel.fail_at(2)
    done = await command(capsys, "sa", "import", tmp_path / "dump")
    await assert_nothing_imported(rig, done, "the kernel refused it")


async def test_a_udp_port_other_than_the_gateways_refuses_the_whole_import(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encap = "128\n\tencap type espinudp sport 4999 dport 4999 addr 0.0.0.0\n"
    (tmp_path / "dump").write_text(STATES.replace("128\n", encap, 1) + POLICIES)
    done = await command(capsys, "sa", "import", tmp_path / "dump")
    await assert_nothing_imported(
        rig, done, "another local UDP port than the gateway, which has 4500"
    )


async def test_importing_twice_is_refused(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await command(capsys, "sa", "import", tmp_path / "dump")
    before = dict(rig.engine.sas)
    done = await command(capsys, "sa", "import", tmp_path / "dump")
    assert (done.status, f"the SA {OUT} exists already" in done.err) == (1, True)
    assert rig.engine.sas == before


async def test_an_import_larger_than_a_request_is_refused_before_anything_is_sent(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ""
    for number in range(600):
        text += (
            (STATES + POLICIES)
            .replace("192.0.2.9", f"192.1.{number // 250}.{number % 250}")
            .replace("10.9.0", f"10.{20 + number // 250}.{number % 250}")
            .replace("0x00001002", f"0x{0x2000 + number:08x}")
            .replace(KEY_OUT, f"{1 + number:032x}a1a1a1a1")
            .replace(KEY_IN, f"{9999 + number:032x}b2b2b2b2")
        )
    (tmp_path / "dump").write_text(text)
    done = await command(capsys, "sa", "import", tmp_path / "dump")
    await assert_nothing_imported(rig, done, "1200 SAs are too many for one import")


async def test_a_missing_or_binary_file_is_reported(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = await command(capsys, "sa", "import", tmp_path / "none")
    await assert_nothing_imported(rig, done, f"{tmp_path / 'none'}: No such file or directory")
    (tmp_path / "dump").write_bytes(bytes(range(256)) * 40)
    done = await command(capsys, "sa", "import", tmp_path / "dump")
    await assert_nothing_imported(rig, done, f"{tmp_path / 'dump'}:1: ")


async def test_the_end_of_the_numbers_is_announced_although_the_engine_counts_to_2_64(
    rig: Rig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    soft = 2**32 - 2**29 - 1
    text = (STATES + POLICIES).replace("oseq 0x30", f"oseq {soft - MARGIN - LEASE_ESN - 5:#x}")
    (tmp_path / "dump").write_text(text)
    await command(capsys, "sa", "import", tmp_path / "dump")
    rig.engine.tell(LeaseLow(OUT))
    await until(lambda: rig.engine.extensions)
    assert "running out of sequence numbers: give it a new key" in caplog.text
    ((_, lease),) = rig.engine.extensions
    assert lease.first <= soft < lease.end


def test_the_ledger_starts_a_key_after_the_numbers_used_elsewhere(tmp_path: Path) -> None:
    from esp_gw.ledger.ledger import FloorRequest, LeaseRequest

    Ledger.create(tmp_path / "ledger.db", MACHINE)
    ledger = Ledger.open(tmp_path / "ledger.db", MACHINE)
    out, in_ = KeyMaterial(b"o" * 16, b"salt"), KeyMaterial(b"i" * 16, b"salt")
    (lease,), (received,) = ledger.begin(
        [LeaseRequest(out, 10, 2**32 - 1, None, 1000)], [FloorRequest(in_, None, 50)]
    )
    assert (lease, received.floor) == (Lease(1001, 1011), 50)
    ledger.close()
    ledger = Ledger.open(tmp_path / "ledger.db", MACHINE)
    (lease,), (received,) = ledger.begin(
        [LeaseRequest(out, 10, 2**32 - 1, None, 1000)], [FloorRequest(in_, None, 20)]
    )
    assert (lease, received.floor) == (Lease(1011, 1021), 50), "neither goes back"
