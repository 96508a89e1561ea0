"""Imports go one way: errors <- model <- pure <- adapters <- gateway <- service <- daemon."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "esp_gw"
ERRORS, MODEL, PURE, ADAPTERS, GATEWAY, SERVICE, DAEMON, TOOLS = range(8)

SANS_IO = {
    "esp",
    "replay",
    "wire",
    "spd",
    "prefixes",
    "reassembly",
    "netplan",
    "reconcile",
    "control.protocol",
    "xfrm.records",
    "xfrm.lines",
    "xfrm.parser",
}
"""Bytes and `now` in, bytes and events out."""
LAYERS = {
    "": ERRORS,  # the package itself, with its version
    "errors": ERRORS,
    "model": MODEL,
    **dict.fromkeys(SANS_IO, PURE),
    "conflicts": PURE,
    # What the pure parts are typed with: an AEAD's two functions, an engine's methods and events.
    "crypto.base": PURE,
    "crypto.recommend": PURE,
    "engine.base": PURE,
    # Checked text: what a field of a configuration may be.
    "fields": PURE,
    "files": PURE,
    "gateway": GATEWAY,
    "service": SERVICE,
    "daemon": DAEMON,
}
"""Every module that is not here is an adapter, and cli and lab are tools."""
IO_MODULES = {
    "asyncio",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
    "shutil",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uvloop",
    "pyroute2",
    "logging",
}


def module_name(path: Path) -> str:
    """`esp_gw/control/protocol.py` is control.protocol; the package itself is the empty name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def layer(module: str) -> int:
    if module.split(".", maxsplit=1)[0] in ("cli", "lab"):
        return TOOLS
    return LAYERS.get(module, ADAPTERS)


def statements(tree: ast.AST, *, everywhere: bool) -> Iterator[ast.AST]:
    """Import statements, without those for types alone; also inside functions if `everywhere`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not everywhere:
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from statements(node, everywhere=everywhere)


def imported(module: str, *, everywhere: bool) -> Iterator[str]:
    """The full names of all modules that a module imports."""
    for node in statements(MODULES[module], everywhere=everywhere):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            base = node.module or ""
            inside = base == "esp_gw" or base.startswith("esp_gw.")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if inside and full.removeprefix("esp_gw.") in MODULES else base


def ours(module: str, *, everywhere: bool = True) -> set[str]:
    """The modules of esp_gw that a module imports, without the package's name."""
    names = imported(module, everywhere=everywhere)
    return {
        name.removeprefix("esp_gw").removeprefix(".")
        for name in names
        if name == "esp_gw" or name.startswith("esp_gw.")
    }


def package(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


every_module = pytest.mark.parametrize("module", MODULES)


def test_the_modules_that_the_rules_name_exist() -> None:
    assert set(LAYERS) <= set(MODULES)
    assert ours("daemon") >= {"gateway", "service", "errors"}
    assert "lab" in {package(name) for name in MODULES}


@every_module
def test_a_module_imports_nothing_of_a_layer_above_its_own(module: str) -> None:
    above = {name for name in ours(module) if layer(name) > layer(module)}
    assert above == set()


@pytest.mark.parametrize("module", sorted(SANS_IO))
def test_protocol_logic_has_no_socket_no_clock_and_no_loop(module: str) -> None:
    """Neither itself nor through what it imports of ours."""
    seen: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        foreign = {full.split(".")[0] for full in imported(name, everywhere=True)}
        assert foreign & IO_MODULES == set(), f"by way of {name}"
        waiting |= ours(name) - seen


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: ours(module, everywhere=False) for module in MODULES}
    TopologicalSorter(graph).prepare()


@every_module
def test_only_the_command_line_imports_the_command_line(module: str) -> None:
    if package(module) != "cli":
        assert "cli" not in {package(name) for name in ours(module)}


@every_module
def test_only_the_command_line_and_the_lab_import_the_lab(module: str) -> None:
    if package(module) not in ("cli", "lab"):
        assert "lab" not in {package(name) for name in ours(module)}


@pytest.mark.parametrize("module", [name for name in MODULES if package(name) == "cli"])
def test_the_command_line_starts_with_little(module: str) -> None:
    """What a command needs more is imported by it, so that 'esp-gw --help' is fast."""
    allowed = {"", "control.client", "control.protocol", "model", "errors"}
    at_start = ours(module, everywhere=False)
    assert {name for name in at_start if package(name) != "cli"} <= allowed


@pytest.mark.parametrize("module", [name for name in MODULES if package(name) == "engine"])
def test_an_engine_knows_neither_the_network_nor_who_runs_it(module: str) -> None:
    forbidden = {"netlink", "netplan", "reconcile", "ledger", "config", "gateway", "daemon"}
    assert ours(module) & forbidden == set()
