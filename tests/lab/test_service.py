"""A gateway as a service: what it tells the service manager and the journal, and how it ends."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esp_gw.cli.main import main
from esp_gw.daemon.starts import STARTS_NAME
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.pair import GatewayPair
from esp_gw.errors import ControlError
from esp_gw.ledger.ledger import LEDGER_NAME, Ledger
from tests.support.commands import Capture
from tests.support.labtools import MakePair, edit, ping, running, tunnel, until, write_key
from tests.support.ledgers import machine
from tests.support.manager import Manager, managed

pytestmark = pytest.mark.either_engine

BIND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("192.0.2.1", 4500))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def service(make_pair: MakePair) -> Iterator[Manager]:
    """The first of a pair of gateways, not started, with each engine."""
    with managed(make_pair().a) as manager:
        yield manager


@pytest.fixture
def early(request: pytest.FixtureRequest, tmp_path: Path, stack: contextlib.ExitStack) -> Manager:
    """The same with one engine, for what happens before there is an engine."""
    from esp_gw.demo.pair import PairPlan, gateway_pair

    plan = PairPlan(settings={"engine": "python"})
    pair: GatewayPair = stack.enter_context(gateway_pair(tmp_path, plan))
    return stack.enter_context(managed(pair.a))


# Exit statuses: 1 is tried again, 65 and 78 are not


def no_file(gateway: LabGateway) -> None:
    gateway.config.unlink()


def no_key(gateway: LabGateway) -> None:
    next((gateway.config.parent / "keys").glob("*.out.key")).unlink()


def no_credential(gateway: LabGateway) -> None:
    edit(gateway, lambda c: tunnel(c)["outbound"].update(key={"credential": "x"}))


def no_yaml(gateway: LabGateway) -> None:
    gateway.config.write_text("gateway: [\n")


def a_wrong_value(gateway: LabGateway) -> None:
    edit(gateway, lambda c: c["gateway"].update(port="many"))


def an_open_key(gateway: LabGateway) -> None:
    next((gateway.config.parent / "keys").glob("*.out.key")).chmod(0o644)


def damaged_additions(gateway: LabGateway) -> None:
    (gateway.folder / "added.json").write_text("[")
    (gateway.folder / "added.json").chmod(0o600)


def a_control_socket_in_no_folder(gateway: LabGateway) -> None:
    edit(gateway, lambda c: c["gateway"].update(control_socket="/run/no-such-folder/x"))


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (no_file, 1),
        (no_key, 1),
        (no_credential, 1),
        (a_control_socket_in_no_folder, 1),
        (no_yaml, 78),
        (a_wrong_value, 78),
        (an_open_key, 78),
        (damaged_additions, 65),
    ],
)
def test_what_is_wrong_ends_the_service_and_what_is_missing_is_tried_again(
    early: Manager, spoil: Callable[[LabGateway], None], status: int
) -> None:
    spoil(early.gateway)
    early.launch()
    assert early.exit_status() == status
    errors = early.lines("error")
    assert errors
    # The reason is in the status, too.
    assert "READY=1" not in early.told()
    assert early.status
    assert any(early.status.split(" (and ")[0] in line for line in errors)


def test_a_wrong_command_line_of_the_unit_is_an_error_in_the_journal(early: Manager) -> None:
    early.launch("--colour", "blue")
    assert early.exit_status() == 2
    (line,) = early.lines("error")
    assert line.startswith("esp-gw run: error: ")


@contextlib.contextmanager
def a_busy_port(gateway: LabGateway) -> Iterator[None]:
    with running(gateway.namespace, BIND):
        yield


@contextlib.contextmanager
def a_state_directory_to_come(gateway: LabGateway) -> Iterator[None]:
    ledger = gateway.folder / LEDGER_NAME
    away = ledger.rename(gateway.folder / "away")
    yield
    away.rename(ledger)


@contextlib.contextmanager
def a_ledger_in_use(gateway: LabGateway) -> Iterator[None]:
    from esp_gw.ledger.identity import machine_identity

    ledger = Ledger.open(gateway.folder / LEDGER_NAME, machine_identity())
    with contextlib.closing(ledger):
        yield


@pytest.mark.parametrize("missing", [a_busy_port, a_state_directory_to_come, a_ledger_in_use])
def test_what_may_pass_is_tried_again_and_then_works(
    service: Manager, missing: Callable[[LabGateway], contextlib.AbstractContextManager[None]]
) -> None:
    with missing(service.gateway):
        service.launch()
        assert service.exit_status() == 1
        (line,) = service.lines("error")
        assert "READY=1" not in service.told()
        assert f"esp-gw: error: {service.status}" == line
    service.start()
    assert service.status.startswith("2 SAs, engine ")
    assert service.stop() == 0


def damaged(gateway: LabGateway) -> None:
    (gateway.folder / LEDGER_NAME).write_bytes(b"damaged")


def foreign(gateway: LabGateway) -> None:
    (gateway.folder / LEDGER_NAME).unlink()
    Ledger.create(gateway.folder / LEDGER_NAME, machine("b"))


def exposed(gateway: LabGateway) -> None:
    (gateway.folder / LEDGER_NAME).chmod(0o644)


def used_the_other_way(gateway: LabGateway) -> None:
    """The keys of the two directions have changed places since they were used."""
    with managed(gateway) as before:
        before.start()
        assert before.stop() == 0
    (gateway.folder / "runtime" / "notify").unlink()
    (gateway.folder / "runtime").rmdir()
    before.journal.unlink()
    a, b = sorted((gateway.config.parent / "keys").glob("*.key"))
    keys = a.read_bytes(), b.read_bytes()
    b.write_bytes(keys[0])
    a.write_bytes(keys[1])


@pytest.mark.parametrize("spoil", [damaged, foreign, exposed, used_the_other_way])
def test_a_ledger_that_is_refused_ends_the_service(
    make_pair: MakePair, spoil: Callable[[LabGateway], None]
) -> None:
    gateway = make_pair().a
    spoil(gateway)
    with managed(gateway) as service:
        service.launch()
        assert service.exit_status() == 65
        (line,) = service.lines("error")
        assert line.startswith("esp-gw: error: ")


# Tries in a row


def after_six_tries(service: Manager) -> None:
    """Let a service fail twice; six by its count, whose next wait is as long as a test may need."""
    for _ in range(2):
        service.launch()
        assert service.exit_status() == 1
    count = service.runtime / STARTS_NAME
    number, _, reason = count.read_text().partition("\n")
    assert number == "2"
    count.write_text(f"6\n{reason}")


def test_tries_in_a_row_wait_longer_until_one_succeeds_or_a_person_comes(early: Manager) -> None:
    text = early.gateway.config.read_text()
    early.gateway.config.unlink()
    after_six_tries(early)
    early.launch()
    early.until_status("trying again within 32 s: ")
    assert "does not exist" in early.status
    assert "EXTEND_TIMEOUT_USEC=122000000" in early.told()
    # It says so, and waits: a person who corrects the file need not.
    early.gateway.config.write_text(text)
    early.process.send_signal(signal.SIGHUP)
    early.until_told("READY=1")
    assert early.stop() == 0
    early.gateway.config.unlink()
    after_six_tries(early)
    early.launch()
    early.until_status("trying again within 32 s: ")
    # Neither does one who restarts the service.
    assert early.stop() == 0
    early.gateway.config.write_text(text)
    early.start()
    assert early.lines("info")[-1].startswith("ready ")


# Reloads


def test_a_reload_tells_the_truth_and_a_broken_file_leaves_everything_as_it_is(
    service: Manager, capsys: Capture
) -> None:
    gateway = service.gateway
    service.start()
    good = gateway.config.read_text()
    running_status = service.status

    def reload() -> tuple[int, str]:
        """As the unit does: by the configuration alone, which names the socket."""
        status = main(["reload", "--config", str(gateway.config)])
        return status, capsys.readouterr().err

    assert reload() == (0, "")
    before = gateway.call("ListSas")
    for broken, says in (
        (good.replace("outbound: ", "outbond: "), "outbound"),
        (good + "colour: blue\n", "colour"),
    ):
        assert broken != good
        gateway.config.write_text(broken)
        status, err = reload()
        assert status == 1
        assert err.startswith(f"esp-gw: error: {gateway.config}:")
        assert err.count("\n") == 1
        assert says in err
        service.until_status("the configuration was not reloaded: ")
        assert says in service.status
        assert service.status.startswith(running_status)
        assert gateway.call("ListSas") == before
    # A file that can't even name the socket.
    gateway.config.write_text("{")
    status, err = reload()
    assert status != 0
    assert str(gateway.config) in err
    gateway.config.write_text(good)
    assert reload() == (0, "")
    service.until_status(running_status)
    assert service.status == running_status
    assert service.told() == ["READY=1"]
    assert service.lines("error") == []


def test_a_hangup_that_fails_is_an_error_in_the_journal_and_in_the_status(
    service: Manager,
) -> None:
    gateway = service.gateway
    service.start()
    running_status = service.status
    good = gateway.config.read_text()
    gateway.config.write_text(good + "colour: blue\n")
    service.process.send_signal(signal.SIGHUP)
    service.until_told("READY=1")
    assert "colour" in service.status
    (line,) = service.lines("error")
    assert line.startswith("not reloaded reason=")
    assert "colour" in line
    gateway.config.write_text(good)
    service.process.send_signal(signal.SIGHUP)
    service.until_told("READY=1")
    assert service.status == running_status
    states = [state.partition("=")[0] for state in service.told()]
    reloading = ["RELOADING", "MONOTONIC_USEC", "READY"]
    assert states == ["READY", *reloading, *reloading]


def test_a_reload_for_another_gateway_is_refused(pair: GatewayPair, capsys: Capture) -> None:
    edit(pair.b, lambda c: c["gateway"].update(control_socket=str(pair.a.socket)))
    assert main(["reload", "--config", str(pair.b.config)]) == 1
    assert f"reads {pair.a.config}, not {pair.b.config}" in capsys.readouterr().err


# The status


def test_the_status_follows_sas_and_faults(service: Manager, tmp_path: Path) -> None:
    gateway = service.gateway
    service.start()
    engine = gateway.call("GetStatus")["engine"]
    assert service.status == f"2 SAs, engine {engine}"
    key = write_key(tmp_path / "more.key").read_text().strip()
    gateway.call(
        "AddSa", name="more/in", direction="inbound", spi=0x9001, local="192.0.2.1",
        remote="192.0.2.2", local_ts=["10.1.8.0/24"], remote_ts=["10.2.8.0/24"], key=key,
    )  # fmt: skip
    service.until_status(f"3 SAs, engine {engine}")
    gateway.namespace.ip("link", "set", "esp0", "down")
    service.until_status("esp0 is down")
    assert service.status.startswith(f"3 SAs, engine {engine}; ")
    gateway.namespace.ip("link", "set", "esp0", "up")
    until(lambda: service.told() is not None and "esp0 is down" not in service.status, "up again")
    assert [text for text, _ in itertools.groupby(service.statuses)] == service.statuses
    assert service.lines("warning")
    assert service.stop() == 0
    assert "STOPPING=1" in service.told()


def test_an_sa_is_exported_with_the_numbers_of_the_gateway_of_its_configuration(
    pair: GatewayPair, tmp_path: Path, capsys: Capture
) -> None:
    assert ping(pair.a.namespace, pair.plan.inner(1), count=3) == 3
    words = ["--config", str(pair.a.config), "--output", str(tmp_path / "batch")]
    assert main(["sa", "export", *words]) == 0
    assert "begin at 1" not in capsys.readouterr().err


def test_a_reload_of_an_absent_gateway_says_that_none_runs(
    pair: GatewayPair, capsys: Capture
) -> None:
    pair.a.stop()
    assert main(["reload", "--config", str(pair.a.config)]) == 3
    assert "esp-gw is not running" in capsys.readouterr().err
    with pytest.raises(ControlError):
        pair.b.call("Reload", config=str(pair.a.config))
