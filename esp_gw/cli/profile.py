"""`esp-gw profile`: where the time of a tunnel's packets goes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import click

from esp_gw.cli.completion import tunnel_names
from esp_gw.cli.options import FILE, SECONDS, Daemon, json_option
from esp_gw.cli.output import print_json
from esp_gw.control.client import stream
from esp_gw.errors import EspGwError, printable

_CLEAR = "\r\x1b[K"


@click.command()
@click.argument("tunnel", shell_complete=tunnel_names)
@click.option(
    "--seconds", type=SECONDS, default=10, show_default=True, metavar="N", help="Time to measure."
)
@click.option(
    "--output", type=FILE, metavar="FILE", help="Write a flame graph, as SVG, to a new file."
)
@json_option
@click.pass_obj
def profile(daemon: Daemon, tunnel: str, seconds: int, output: Path | None, as_json: bool) -> None:
    """Measure where the time of a tunnel's packets goes, stage by stage, while it has traffic.

    The threads that carry TUNNEL are measured, with all that they carry. Ctrl-C ends it earlier.
    """
    from esp_gw.cli import profile_report as report  # noqa: PLC0415 - needed here alone
    from esp_gw.demo.signals import ended_by_signals  # noqa: PLC0415 - likewise

    with ended_by_signals(), contextlib.ExitStack() as stack:
        graph = None if output is None else stack.enter_context(_new_file(output))
        measured = _measure(daemon, tunnel, seconds)
        if graph is not None:
            graph.write(report.graph(measured))
    document = report.document(measured, output)
    if as_json:
        print_json(document)
    else:
        report.show(document)


def _measure(daemon: Daemon, tunnel: str, seconds: int) -> Any:
    """Measure until the seconds are over, or SIGINT, which ends it with what there is."""
    from esp_gw.cli.perf import processor_ns, recording, threads_of  # noqa: PLC0415 - likewise
    from esp_gw.cli.profile_report import Measured, is_native  # noqa: PLC0415

    status = daemon.call("GetStatus")
    pid = status["pid"]
    names = [f"esp-worker-{number}" for number in range(status["workers"])]
    threads = threads_of(pid, names) if is_native(status) else {}
    replies = stream(
        daemon.socket, "Profile", {"tunnel": tunnel, "seconds": seconds}, daemon.timeout
    )
    reply: Mapping[str, Any] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(replies.close)
        before = processor_ns(pid, threads)
        recorded = stack.enter_context(recording(threads, seconds)) if threads else None
        try:
            for each in _with_progress(replies, seconds):
                reply = each
        except KeyboardInterrupt:
            # As of a ping it is enough, and what was measured is told.
            if not reply:
                raise
        spent = processor_ns(pid, threads) - before
        # The gateway measures no longer.
        replies.close()
        if recorded is None:
            return Measured(reply, None, spent, "the engine has no worker threads")
        recorded.stop()
        _show_progress("perf names the functions")
        try:
            samples = recorded.samples()
        finally:
            _show_progress("")
        return Measured(reply, samples, spent, recorded.why)


def _with_progress(replies: Iterator[dict[str, Any]], seconds: int) -> Iterator[dict[str, Any]]:
    """Yield the replies; on a terminal, say how many seconds have passed."""
    try:
        for reply in replies:
            yield reply
            _show_progress(f"measured {reply['seconds']:.0f} of {seconds} s")
    finally:
        _show_progress("")


def _show_progress(text: str) -> None:
    """Show a text on the terminal in place of the one before."""
    if sys.stderr.isatty():
        click.echo(f"{_CLEAR}{text}", err=True, nl=False)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[str]]:
    """Create a file for the block to fill; none is left after an error. Raises EspGwError."""
    if str(path) == "-":
        raise EspGwError("stdout has the table: name a file for the flame graph", where="--output")
    try:
        made = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise EspGwError(
            "exists already and is not overwritten",
            where=printable(str(path)),
            hint="name another file, or remove it",
        ) from None
    except (OSError, ValueError) as error:
        text = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
        raise EspGwError(
            f"can't be written: {text}", where=printable(str(path)), hint="name another file"
        ) from None
    try:
        with made:
            yield made
    except BaseException:
        path.unlink(missing_ok=True)
        raise
