"""The machine of a run: processor, kernel, and the versions of everything measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from esp_gw import __version__
from esp_gw.demo.netns import run_command
from esp_gw.errors import LabError
from lab.bench.charon import CHARON

TIMEOUT = 10.0
_MODULE = re.compile(r"^\tmod\t\S+\t(v\S+)", re.MULTILINE)
_VERSION = re.compile(r"v?\d+(?:\.\d+)+\S*")


def describe(wireguard_go: str, gotatun: str) -> dict[str, object]:
    """Machine and versions; programs that are not installed are omitted."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: text for name, text in _versions(wireguard_go, gotatun).items() if text},
    }


def _versions(wireguard_go: str, gotatun: str) -> dict[str, str]:
    return {
        "esp_gw": __version__,
        "native": _package("esp-gw-core"),
        "python": f"{platform.python_version()}, cryptography {_package('cryptography')}",
        "strongswan": _program_version(("swanctl", "--version")) if CHARON.exists() else "",
        "wireguard-go": _wireguard_go_version(wireguard_go),
        "gotatun": _program_version((gotatun, "--version")),
        "openvpn": _program_version(("openvpn", "--version")),
        "iperf3": _program_version(("iperf3", "--version")),
    }


def _wireguard_go_version(binary: str) -> str:
    """The module's version, whose date is that of its last commit; else what the program says."""
    try:
        output = run_command(("go", "version", "-m", binary), TIMEOUT, False).stdout
    except (LabError, OSError):
        output = ""
    return module_version(output) or _program_version((binary, "--version"))


def module_version(output: str) -> str:
    """The version of the main module in the output of `go version -m`; empty if it has none."""
    found = _MODULE.search(output)
    return found[1] if found else ""


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _program_version(command: Sequence[str]) -> str:
    """The first version number in a program's output; empty if there is no such program."""
    try:
        result = run_command(command, TIMEOUT, False)
    except (LabError, OSError):
        return ""
    found = _VERSION.search(f"{result.stdout}\n{result.stderr}")
    return found.group() if found else ""


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or "unknown"
