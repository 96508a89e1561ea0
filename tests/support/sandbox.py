"""The unit's sandbox: what it denies, and what of that a trace of system calls shows."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

UNIT = Path(__file__).parents[2] / "systemd" / "esp-gw.service"

_CALL = re.compile(r"^\d+ +(\w+)\((.*)")
_MADE_EXECUTABLE = {"mprotect", "pkey_mprotect"}


def setting(name: str) -> list[str]:
    """The values of a setting of the unit, in order."""
    lines = UNIT.read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


@cache
def _groups() -> dict[str, list[str]]:
    """The groups of system calls, as the installed systemd knows them."""
    command = ["systemd-analyze", "syscall-filter", "--no-pager"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    groups: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("@"):
            name = line.strip()
            groups[name] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            groups[name].append(line.strip())
    return groups


def _members(name: str) -> Iterator[str]:
    if not name.startswith("@"):
        yield name
    for each in _groups().get(name, ()):
        yield from _members(each)


@cache
def allowed_calls() -> frozenset[str]:
    """The system calls that the unit allows (systemd.exec(5), SystemCallFilter=)."""
    allowed = set(_members("@default"))
    for value in setting("SystemCallFilter"):
        names = value.removeprefix("~").split()
        listed = {member for name in names for member in _members(name)}
        allowed = allowed - listed if value.startswith("~") else allowed | listed
    return frozenset(allowed)


def denied(trace: str) -> set[str]:
    """The calls in the output of `strace -f -o` that the unit denies, with why.

    AF_ALG is left out: whether it may be used is asked by a call that may be denied.
    """
    (families,) = setting("RestrictAddressFamilies")
    found = set()
    for line in trace.splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        name, arguments = match.groups()
        if name not in allowed_calls():
            found.add(name)
        if name == "socket":
            family = arguments.split(",")[0]
            if family not in (*families.split(), "AF_ALG"):
                found.add(f"socket({family})")
        is_executable = "PROT_EXEC" in arguments
        if (name in _MADE_EXECUTABLE and is_executable) or (
            name == "mmap" and is_executable and "PROT_WRITE" in arguments
        ):
            found.add(f"{name}(PROT_EXEC)")
    return found


def calls(trace: str) -> set[str]:
    """The names of all system calls in a trace."""
    return {match[1] for line in trace.splitlines() if (match := _CALL.match(line))}
