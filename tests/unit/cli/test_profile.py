"""`profile`: perf's text becomes stacks, stacks a flame graph, and the times a table."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from esp_gw.cli import perf, profile_report
from esp_gw.cli import profile as command
from esp_gw.cli.flame_graph import flame_graph, folded
from esp_gw.cli.main import cli, main
from esp_gw.engine.stages import Stage
from esp_gw.errors import EspGwError, NotRunningError
from tests.support.canned import Gateway
from tests.support.fakes import until

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    "</title><script>alert(1)</script>",
    "a&b;\"'<>",
    "\x00\x1b[2J\x07",
    "\ud800 lone",
    "￾\U0010ffff",
    "]]>",
    "x" * 5000,
    "",
]
NS = {
    "tun-read": 4_000_000_000,
    "look-up": 1_000_000,
    "seal": 2_000_000_000,
    "send": 1_000_000_000,
    "receive": 500_000_000,
    "open": 250_000_000,
    "merge": 0,
    "tun-write": 248_999_999,
}
THREAD = {"name": "esp-worker-0", "ns": NS, "packets_out": 1_000_000, "packets_in": 500_000}
REPLY: dict[str, Any] = {
    "tunnel": "office",
    "engine": "native",
    "seconds": 10.0,
    "packets_out": 1_000_000,
    "packets_in": 250_000,
    "clock_ns": 25.0,
    "threads": [
        THREAD | {"clock_reads": 16_000_000},
        {"name": "esp-worker-1", "ns": dict.fromkeys(NS, 0), "packets_out": 0, "packets_in": 0,
         "clock_reads": 0},
    ],
}  # fmt: skip
SCRIPT = """
   11    1000000 cycles:P:
\tffffffff81a01234 udp_send_skb
\tffffffff81a01233 __sys_sendmsg
\tffffffff81a01232 do_syscall_64
\t    7fa6759be62a esp_dataplane::worker::sender::Sender::send::h0123456789abcdef
\t    7fa6759be62b esp_dataplane::worker::thread::Worker::run

   12    2000000 cycles:P:
\t    7fa6759bf3e0 aes_gcm_enc_update_vaes

   99    7000000 cycles:P:
\t    7fa6759bf3e0 somebody_else

   11    3000000 cycles:P:
\t    7fa6759bf3e0 [unknown]
"""


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch, gateway: Gateway) -> list[Any]:
    """The answers of a profile: documents, or an exception where it is interrupted."""
    said: list[Any] = [REPLY]

    def stream(*_arguments: object) -> Iterator[dict[str, Any]]:
        for each in said:
            if isinstance(each, BaseException):
                raise each
            yield each

    monkeypatch.setattr(command, "stream", stream)
    return said


def test_samples_become_stacks_under_their_stage_and_those_of_other_threads_are_left_out() -> None:
    found = perf.parsed(SCRIPT.splitlines(), {11: "esp-worker-0", 12: "esp-worker-1"})
    run = "esp_dataplane::worker::thread::Worker::run"
    send = "esp_dataplane::worker::sender::Sender::send"
    kernel = ("do_syscall_64", "__sys_sendmsg", "udp_send_skb")
    assert found.stacks == {
        ("esp-worker-0", "send", run, send, *kernel): 1_000_000,
        ("esp-worker-1", "seal", "aes_gcm_enc_update_vaes"): 2_000_000,
        ("esp-worker-0", "other", "[unknown]"): 3_000_000,
    }
    assert (found.event, found.cycles) == ("cycles:P", 6_000_000)
    text = SCRIPT.replace("cycles:P", "cpu-clock:ppp")
    assert perf.parsed(text.splitlines(), {11: "a"}).cycles is None
    assert perf.parsed([], {11: "a"}) == perf.Samples({}, "")


@pytest.mark.parametrize(
    ("frames", "stage"),
    [
        (["run", "do_readv", "tun_chr_read_iter"], Stage.TUN_READ),
        (["run", "do_writev", "tun_get_user", "netif_receive_skb", "tcp_ack"], Stage.TUN_WRITE),
        # All that a packet meets below the system call is the system call's.
        (["run", "__sys_sendmsg", "do_softirq", "udp_recvmsg", "do_readv"], Stage.SEND),
        (["run", "__sys_recvmmsg", "copy"], Stage.RECEIVE),
        (["run", "do_epoll_wait", "schedule"], "wait"),
        (["Aead>::open", "aead_open_gather", "aes_hw_encrypt"], Stage.OPEN),
        (["esp_core::offload::coalesce::Coalescer::accept", "memcpy"], Stage.MERGE),
        (["esp_dataplane::worker::targets::Targets::of"], Stage.LOOK_UP),
        ([], "other"),
    ],
)
def test_the_stage_of_a_stack(frames: list[str], stage: str) -> None:
    assert perf.stage_of(frames) == stage


def test_folded_lines_have_no_separator_in_a_name() -> None:
    stacks = {("a b", "c;d\ne"): 3, ("a b",): 1}
    assert list(folded(stacks)) == ["a_b 1", "a_b;c_d_e 3"]


def test_a_flame_graph_with_hostile_names_is_well_formed_and_has_nothing_active() -> None:
    stacks = {(name, inner): 7 for name in HOSTILE for inner in HOSTILE}
    text = flame_graph(stacks, "".join(HOSTILE))
    root = ElementTree.fromstring(text.encode("utf-8"))
    kinds = {each.tag.removeprefix(SVG) for each in root.iter()}
    assert kinds == {"svg", "title", "rect", "text", "g"}
    assert not any(name.startswith("on") for each in root.iter() for name in each.attrib)
    titles = [each.text or "" for each in root.iter(f"{SVG}title")]
    assert any("<script>" in title for title in titles)


def test_a_frame_is_as_wide_as_its_share_and_stands_on_its_caller() -> None:
    root = ElementTree.fromstring(flame_graph({("a", "b"): 30, ("a", "c"): 60, ("d",): 10}, "t"))
    boxes = {}
    for group in root.iter(f"{SVG}g"):
        name = (group.findtext(f"{SVG}title") or "").partition(":")[0]
        box = group.find(f"{SVG}rect")
        assert box is not None
        boxes[name] = [float(box.attrib[key]) for key in ("x", "y", "width")]
    whole = boxes["all"][2]
    shares = {name: round(box[2] / whole, 3) for name, box in boxes.items()}
    assert shares == {"all": 1.0, "a": 0.9, "b": 0.3, "c": 0.6, "d": 0.1}
    assert boxes["c"][0] == pytest.approx(boxes["b"][0] + boxes["b"][2], abs=0.02)
    assert boxes["b"][1] < boxes["a"][1] < boxes["all"][1]


@pytest.mark.parametrize("stacks", [{}, {("a",): 0}, {("a",): -5}])
def test_a_flame_graph_of_nothing_says_so(stacks: dict[tuple[str, ...], int]) -> None:
    text = flame_graph(stacks, "t")
    ElementTree.fromstring(text)
    assert "nothing was measured" in text


def test_a_stack_deeper_than_any_is_cut() -> None:
    ElementTree.fromstring(flame_graph({tuple(str(n) for n in range(5000)): 1}, "t"))


def test_the_document_has_shares_and_times_of_a_packet_of_each_direction() -> None:
    samples = perf.Samples({("t", "seal"): 16_000_000_000}, "cycles")
    measured = profile_report.Measured(REPLY, samples, 8_000_000_000, "")
    found = profile_report.document(measured, Path("/tmp/x.svg"))
    assert {key: found[key] for key in REPLY} == REPLY
    by_name = {each["stage"]: each for each in found["stages"]}
    assert list(by_name) == list(NS)
    assert sum(each["share"] for each in found["stages"]) == pytest.approx(1, abs=0.001)
    seal, opened = by_name["seal"], by_name["open"]
    assert (seal["direction"], seal["ns_a_packet"], seal["cycles_a_packet"]) == (
        "outbound", 2000.0, 4000.0,
    )  # fmt: skip
    assert (opened["direction"], opened["ns_a_packet"]) == ("inbound", 500.0)
    assert found["perf"] == {"stacks": 1, "event": "cycles", "why": ""}
    assert found["output"] == "/tmp/x.svg"
    assert found["clock_share"] == pytest.approx(0.05, abs=0.001)


def test_without_packets_no_time_of_a_packet_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    idle = {**REPLY, "threads": REPLY["threads"][1:], "packets_out": 0, "packets_in": 0}
    measured = profile_report.Measured(idle, None, 0, "perf is not installed")
    found = profile_report.document(measured, None)
    assert {each["ns_a_packet"] for each in found["stages"]} == {None}
    profile_report.show(found)
    assert "no packet passed" in capsys.readouterr().out
    measured = profile_report.Measured(idle, perf.Samples({}), 0, "")
    profile_report.show(profile_report.document(measured, Path("x.svg")))
    assert "a flame graph by stage (perf saw no thread run)" in capsys.readouterr().out


def test_a_table_fits_80_columns_and_divides_no_number(gateway: Gateway, tmp_path: Path) -> None:
    long = "a-tunnel-with-a-rather-long-name-as-long-as-a-name-can-possibly-be"
    reply = {**REPLY, "tunnel": long}
    program = (
        "import json, sys; from esp_gw.cli import profile_report as r; from pathlib import Path\n"
        "m = r.Measured(json.loads(sys.argv[1]), None, 0, 'perf is not installed')\n"
        "r.show(r.document(m, Path('/tmp') / ('long' * 9)))\n"
    )
    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(reply)],
        stdout=follower,
        env={**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"},
        check=True,
        timeout=60,
    )
    os.close(follower)
    assert done.returncode == 0
    text = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        if not piece:
            break
        text += piece
    os.close(leader)
    lines = text.decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    assert any(long in line for line in lines)
    assert "1000000 packets out, 500000 in" in " ".join(" ".join(lines).split())


def test_an_interruption_tells_what_was_measured(replies: list[Any]) -> None:
    replies.append(KeyboardInterrupt())
    done = CliRunner().invoke(cli, ["profile", "office", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["seconds"] == 10.0


def test_an_interruption_before_anything_was_measured_is_130(
    replies: list[Any], tmp_path: Path
) -> None:
    replies.insert(0, KeyboardInterrupt())
    graph = tmp_path / "graph.svg"
    assert main(["profile", "office", "--output", str(graph)]) == 130
    assert not graph.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_it_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, gateway: Gateway, tmp_path: Path, number: signal.Signals
) -> None:
    def stream(*_arguments: object) -> Iterator[dict[str, Any]]:
        assert signal.getsignal(number) is not signal.SIG_DFL
        os.kill(os.getpid(), number)
        yield REPLY

    monkeypatch.setattr(command, "stream", stream)
    graph = tmp_path / "graph.svg"
    assert main(["profile", "office", "--output", str(graph)]) == 130
    assert not graph.exists()
    assert signal.getsignal(number) is signal.SIG_DFL


CLIENT = """
import os, time
from esp_gw.cli.perf import recording
with recording({os.getpid(): "me"}, 3000) as recorded:
    print(recorded._process.pid, flush=True)
    time.sleep(3000)
"""


def fake_perf(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program in place of perf."""
    fake = folder / "perf"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def recording_client(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a client that records; return its perf's process id, too."""
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert client.stdout is not None
    return client, int(client.stdout.readline())


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


async def test_a_recording_ends_with_its_client_whatever_ended_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As perf does: its workload's end is its own.
    run_workload = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'
    fake_perf(tmp_path, monkeypatch, run_workload)
    client, pid = recording_client(tmp_path)
    try:
        assert runs(pid)
        client.kill()
        client.communicate(timeout=60)
        await until(lambda: not runs(pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("seconds", "threads"), [(1, 1), (10, 4), (60, 16), (3600, 1), (3600, 64)])
def test_the_samples_of_all_threads_are_bounded(seconds: int, threads: int) -> None:
    frequency = perf._frequency(seconds, threads)
    assert 1 <= frequency <= perf.FREQUENCY
    assert frequency == 1 or frequency * seconds * threads <= perf.MAX_SAMPLES


def test_samples_are_taken_in_while_perf_still_names_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "samples").write_text(SCRIPT)
    waits = f"for _ in $(seq 200); do [ -e {tmp_path}/seen ] && exit 0; sleep 0.1; done; exit 1"
    script = f"[ $1 = script ] || exit 0; cat {tmp_path}/samples; {waits}"
    fake_perf(tmp_path, monkeypatch, script)

    def stage_of(_frames: object) -> str:
        (tmp_path / "seen").touch()
        return "seal"

    monkeypatch.setattr(perf, "stage_of", stage_of)
    recorded = perf.Recording(tmp_path, {11: "a"}, 1)
    (tmp_path / "perf.data").touch()
    recorded.stop()
    found = recorded.samples()
    assert recorded.why == ""
    assert sum(found.stacks.values()) == 4_000_000


@pytest.mark.parametrize(
    ("then", "limit", "why"),
    [
        ("exit 1", 60, "perf can't read its own samples"),
        ("exec sleep 300", 0.2, "perf did not name the functions in time"),
    ],
)
def test_a_perf_that_can_not_name_functions_leaves_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, limit: float, why: str
) -> None:
    fake_perf(tmp_path, monkeypatch, f"[ $1 = script ] || exit 0; {then}")
    monkeypatch.setattr(perf, "_READING", limit)
    recorded = perf.Recording(tmp_path, {11: "a"}, 1)
    (tmp_path / "perf.data").touch()
    recorded.stop()
    assert recorded.samples() == perf.Samples({})
    assert recorded.why == why


@pytest.mark.parametrize("error", [NotRunningError("it ended"), EspGwError("no answer")])
def test_no_file_is_left_after_a_failure(
    replies: list[Any], tmp_path: Path, error: EspGwError, capsys: pytest.CaptureFixture[str]
) -> None:
    replies.insert(0, error)
    graph = tmp_path / "graph.svg"
    assert main(["profile", "office", "--output", str(graph)]) == error.exit_status
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not graph.exists()


def test_an_existing_file_is_kept_and_nothing_is_measured(
    replies: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replies.insert(0, AssertionError("it was measured"))
    graph = tmp_path / "graph.svg"
    graph.write_text("mine")
    assert main(["profile", "office", "--output", str(graph)]) == 1
    assert "is not overwritten" in capsys.readouterr().err
    assert graph.read_text() == "mine"
    link = tmp_path / "link.svg"
    link.symlink_to(tmp_path / "elsewhere.svg")
    assert main(["profile", "office", "--output", str(link)]) == 1
    assert not (tmp_path / "elsewhere.svg").exists()


def test_a_perf_that_refuses_is_told_and_leaves_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_perf(tmp_path, monkeypatch, "echo 'Access to performance is limited.' >&2; exit 1")
    with perf.recording({os.getpid(): "me"}, 1) as recorded:
        assert recorded._process is not None
        recorded._process.wait(60)
    assert recorded.samples() == perf.Samples({})
    assert recorded.why == "perf refuses: Access to performance is limited."
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with perf.recording({os.getpid(): "me"}, 1) as recorded:
        pass
    assert recorded.why == "perf is not installed"
