"""The demo as a whole: it looks at the machine, runs the steps, and prints what came of them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from esp_gw.demo.ike import IkeDemo
from esp_gw.demo.results import print_table
from esp_gw.demo.signals import ended_by_signals
from esp_gw.demo.steps import Demo, DemoOptions
from esp_gw.errors import LabError

PROGRAMS = ("ip", "setpriv", "ping", "iperf3")
_IKE_PROGRAMS = ("mount", "unshare")


def run(options: DemoOptions) -> int:
    """Run the demo with manual keys; return 0 only if traffic passed, and no cleartext.

    Raises LabError if it can't run here. It always removes everything it created.
    """
    check_machine(PROGRAMS)
    return _run(Demo, options)


def run_ike(options: DemoOptions) -> int:
    """Run the demo with keys by IKE, like `run`; nothing may get lost over the rekeys either."""
    check_machine((*PROGRAMS, *_IKE_PROGRAMS))
    return _run(IkeDemo, options)


def _run(kind: type[Demo], options: DemoOptions) -> int:
    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="esp-gw-demo-") as folder:
        result = kind(options, Path(folder)).run()
    if options.json_output:
        print(json.dumps(asdict(result)))
    else:
        print_table(result.rows(options.seconds))
    return 0 if result.fault is None else 1


def check_machine(programs: tuple[str, ...]) -> None:
    """Raise LabError unless this is root, with these programs and TUN devices."""
    if os.geteuid() != 0:
        raise LabError("the demo needs root to create network namespaces", hint="run it with sudo")
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise LabError(
            f"not installed: {', '.join(missing)}",
            hint="on Debian: 'apt-get install iproute2 util-linux mount iputils-ping iperf3'",
        )
    if not Path("/dev/net/tun").exists():
        raise LabError("there is no /dev/net/tun", hint="load the module with 'modprobe tun'")
