"""Cargo configuration that links the C libraries of an earlier build, in place of building them.

    cargo build --message-format=json-render-diagnostics | python -m lab.built_libraries FILE

Each further target directory, compiler or profile would build them again, which takes minutes. A
package with a `links` key whose build script made a static library is overridden, as in
<https://doc.rust-lang.org/cargo/reference/build-scripts.html#overriding-build-scripts>.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_LISTS = ("rustc-link-lib", "rustc-link-search", "rustc-cfg", "rustc-check-cfg")
# Conditions for another run of the script, and messages to a person.
_IGNORED = ("rerun-if-changed", "rerun-if-env-changed", "warning")

Table = dict[str, str | list[str]]


def table(output: str) -> Table:
    """Return the override that stands for a build script by its output.

    Raises ValueError for an instruction that it has no place for.
    """
    lists: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for line in output.splitlines():
        if not line.startswith("cargo:"):
            continue
        name, _, value = line.removeprefix("cargo:").removeprefix(":").partition("=")
        if name == "metadata":
            name, _, value = value.partition("=")
        if name in _LISTS:
            lists.setdefault(name, []).append(value)
        elif name.startswith("rustc-"):
            raise ValueError(f"a build script asks for {name}, which is not handled")
        elif name not in _IGNORED:
            found[name] = value
    return {**lists, **found}


def overrides(messages: Iterable[str], links: dict[str, str], triple: str) -> str:
    """Return the configuration for the static libraries of a build, by its JSON messages.

    `links` has the key of that name by package id.
    """
    sections = []
    for line in messages:
        message: dict[str, Any] = json.loads(line)
        if message["reason"] != "build-script-executed" or message["package_id"] not in links:
            continue
        if any(library.startswith("static=") for library in message["linked_libs"]):
            output = Path(message["out_dir"]).with_name("output").read_text()
            lines = [f"[target.{triple}.{links[message['package_id']]}]"]
            lines += [f"{name} = {json.dumps(value)}" for name, value in table(output).items()]
            sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def main(file: Path) -> None:
    """Write the configuration for the build whose messages are on standard input."""
    messages = sys.stdin.read().splitlines()
    metadata = json.loads(_output("cargo", "metadata", "--format-version=1", "--locked"))
    links = {
        package["id"]: package["links"] for package in metadata["packages"] if package["links"]
    }
    (triple,) = (
        line.removeprefix("host: ")
        for line in _output("rustc", "-vV").splitlines()
        if line.startswith("host: ")
    )
    file.write_text(overrides(messages, links, triple))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
