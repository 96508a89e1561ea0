"""A profile as a table, a JSON document and a flame graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp_gw.cli.flame_graph import flame_graph
from esp_gw.cli.output import counted, print_table, print_text
from esp_gw.cli.perf import Samples
from esp_gw.engine.stages import Stage

_OUTBOUND = (Stage.TUN_READ, Stage.LOOK_UP, Stage.SEAL, Stage.SEND)


@dataclass(frozen=True, slots=True)
class Measured:
    """A measurement: the last reply of the gateway, and perf's samples, or `why` none.

    `processor_ns` is the time for which the threads have run.
    """

    reply: Mapping[str, Any]
    samples: Samples | None
    processor_ns: int
    why: str

    @property
    def unused(self) -> str:
        """The reason that perf says nothing, or empty."""
        seen = self.samples is not None and self.samples.stacks
        return "" if seen else self.why or "perf saw no thread run"

    @property
    def cycles_a_ns(self) -> float | None:
        """Cycles of a nanosecond in which a thread ran, if perf counts them."""
        cycles = None if self.samples is None else self.samples.cycles
        return cycles / self.processor_ns if cycles and self.processor_ns else None


def is_native(status: Mapping[str, Any]) -> bool:
    """True if the threads of the engine are workers, which perf can tell from the others."""
    return bool(status["engine"] == "native")


def document(measured: Measured, output: Path | None) -> dict[str, Any]:
    """Return what was measured for a script."""
    reply = measured.reply
    threads = reply["threads"]
    ns = _sums(threads)
    whole = sum(ns.values())
    packets = {
        True: sum(each["packets_out"] for each in threads),
        False: sum(each["packets_in"] for each in threads),
    }
    cycles = measured.cycles_a_ns
    stages = []
    for stage, spent in ns.items():
        passed = packets[stage in _OUTBOUND]
        each = spent / passed if passed else None
        stages.append(
            {
                "stage": stage,
                "direction": "outbound" if stage in _OUTBOUND else "inbound",
                "ns": spent,
                "share": round(spent / whole, 4) if whole else 0.0,
                "ns_a_packet": None if each is None else round(each, 1),
                "cycles_a_packet": None
                if each is None or cycles is None
                else round(each * cycles, 1),
            }
        )
    reads = sum(each["clock_reads"] for each in threads)
    return {
        **reply,
        "clock_share": round(min(reads * reply["clock_ns"] / whole, 1.0), 4) if whole else 0.0,
        "stages": stages,
        "perf": {
            "stacks": 0 if measured.samples is None else len(measured.samples.stacks),
            "event": None if measured.samples is None else measured.samples.event or None,
            "why": measured.unused,
        },
        "output": None if output is None else str(output),
    }


def show(found: Mapping[str, Any]) -> None:
    """Print a document as a table, with what was measured and what was not."""
    print_table(
        ("STAGE", "SHARE", "NS A PACKET", "CYCLES A PACKET"),
        [
            (
                each["stage"],
                f"{100 * each['share']:.1f} %",
                _number(each["ns_a_packet"]),
                _number(each["cycles_a_packet"]),
            )
            for each in found["stages"]
        ],
        none="the engine has no stages",
    )
    for text in _remarks(found):
        print_text(text)


def _remarks(found: Mapping[str, Any]) -> Iterator[str]:
    threads = found["threads"]
    out = sum(each["packets_out"] for each in threads)
    into = sum(each["packets_in"] for each in threads)
    carried = f"{counted(out, 'packet')} out, {into} in"
    yield (
        f"{found['seconds']:.1f} s of the {found['engine']} engine; "
        f"{counted(len(threads), 'thread')} carried {carried}, for all tunnels"
    )
    if out + into:
        own = found["packets_out"] + found["packets_in"]
        share = min(100 * own / (out + into), 100)
        yield (
            f"{found['tunnel']}: {found['packets_out']} out, {found['packets_in']} in, "
            f"{share:.0f} % of them"
        )
    else:
        yield f"no packet passed: send some through {found['tunnel']} meanwhile"
    for each in threads:
        spent = sum(each["ns"].values())
        yield (
            f"{each['name']}: {spent / found['seconds'] / 1e7:.1f} % of the time in these stages, "
            f"{each['packets_out']} out, {each['packets_in']} in"
        )
    yield f"the measuring itself: {100 * found['clock_share']:.1f} % of the shares"
    if found["output"] is not None:
        how = "by stage" if found["perf"]["why"] else f"by perf's {found['perf']['event']}"
        why = f" ({found['perf']['why']})" if found["perf"]["why"] else ""
        yield f"wrote {found['output']}: a flame graph {how}{why}"


def graph(measured: Measured) -> str:
    """Return the flame graph: perf's stacks, else the stages of each thread."""
    reply = measured.reply
    title = f"esp-gw: {reply['tunnel']}, {reply['seconds']:.1f} s"
    if measured.samples is not None and measured.samples.stacks:
        return flame_graph(measured.samples.stacks, f"{title}, perf's {measured.samples.event}")
    stacks: dict[tuple[str, ...], int] = {
        (each["name"], stage): ns for each in reply["threads"] for stage, ns in each["ns"].items()
    }
    return flame_graph(stacks, f"{title}, the stages' time")


def _sums(threads: list[Mapping[str, Any]]) -> dict[str, int]:
    """Return the time of each stage that a thread has, in the order of a packet's way."""
    return {
        str(stage): sum(each["ns"].get(stage, 0) for each in threads)
        for stage in Stage
        if any(stage in each["ns"] for each in threads)
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
