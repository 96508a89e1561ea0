"""A folder of esp_gw/ is a layer, and imports go one way through the layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
ROOT = PROJECT / "esp_gw"
GROUND = ""
"""The modules beside the folders: values that everything speaks."""
CLI_START = {GROUND, "control"}
"""Folders that `esp-gw --help` imports; a command imports more when it is called."""

ALLOWED = {
    GROUND: set(),
    "crypto": {GROUND},
    "config": {GROUND, "crypto"},
    "ledger": {GROUND},
    "network": {GROUND},
    "control": {GROUND},
    "engine": {GROUND, "crypto"},
    "engine.python": {GROUND, "crypto", "engine"},
    "xfrm": {GROUND, "config"},
    "daemon": {GROUND, "crypto", "config", "ledger", "network", "control", "engine", "health"},
    "health": {GROUND, "engine", "network"},
    "demo": {GROUND, "config", "ledger", "control"},
    "tune": {GROUND, "network"},
    "cli": {GROUND, "crypto", "config", "ledger", "network", "control", "engine", "xfrm", "tune"},
}
"""Folders that each folder may import beside itself."""
SINGLE = {
    # The one module that chooses between the engines, and the commands that hand over.
    ("daemon.engines", "engine.python"),
    ("cli.gateway", "daemon"),
    ("cli.guard", "daemon"),
    ("cli.guarding", "daemon"),
    ("cli.demo", "demo"),
    ("cli.tune", "demo"),
    # The signals that end it.
    ("cli.profile", "demo"),
}
SANS_IO = {
    "control.protocol",
    "control.sessions",
    "daemon.reconcile",
    "engine.keepalives",
    "engine.python.drop",
    "engine.python.esp",
    "engine.python.fragments",
    "engine.python.icmp",
    "engine.python.lanes",
    "engine.python.reassembly",
    "engine.python.replay",
    "engine.python.spd",
    "engine.python.wire",
    "health.causes",
    "health.news",
    "health.roster",
    "health.tracker",
    "health.unreachable",
    "network.changes",
    "network.filters",
    "network.firewall",
    "network.flow",
    "network.forward",
    "network.icmp",
    "network.mtu",
    "network.objects",
    "network.plan",
    "network.prefixes",
    "network.ranges",
    "network.rules",
    "network.ruleset",
    "network.sources",
    "network.surroundings",
    "network.translations",
    "tune.advice",
    "tune.hints",
    "tune.knobs",
    "tune.machine",
    "tune.making",
    "xfrm.lines",
    "xfrm.parser",
    "xfrm.records",
}
"""Bytes and `now` in, bytes and events out."""
IO_MODULES = {
    "asyncio",
    "ctypes",
    "datetime",
    "fcntl",
    "http",
    "logging",
    "os",
    "pathlib",
    "pyroute2",
    "random",
    "secrets",
    "select",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uvloop",
}


def module_name(path: Path) -> str:
    """`esp_gw/control/protocol.py` is control.protocol; the package itself is the empty name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def folder(module: str) -> str:
    """The folder that a module stands in; a package's own code counts as inside it."""
    parent = module.rpartition(".")[0]
    return module if module in ALLOWED else parent


def statements(tree: ast.AST, *, everywhere: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, those for types alone among them; inside functions if `everywhere`."""
    for node in ast.iter_child_nodes(tree):
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
        else:
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


def reached(module: str, *, everywhere: bool) -> set[str]:
    """All modules that are imported when a module is, itself among them."""
    seen: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting |= ours(name, everywhere=everywhere) - seen
    return seen


def test_the_folders_and_modules_that_the_rules_name_are_those_there_are() -> None:
    assert {folder(module) for module in MODULES} == set(ALLOWED)
    assert {module for module, _ in SINGLE} | SANS_IO <= set(MODULES)
    assert ours("daemon.main") >= {"daemon.gateway", "daemon.service", "errors"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_folder_may(module: str) -> None:
    own = folder(module)
    used = {folder(name) for name in ours(module)} - {own} - ALLOWED[own]
    assert {name for name in used if (module, name) not in SINGLE} == set()


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = {module: ours(module) - {module} for module in MODULES}
    TopologicalSorter(graph).prepare()


def test_no_folder_imports_itself_by_way_of_others() -> None:
    graph: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for module in MODULES:
        graph[folder(module)] |= {folder(name) for name in ours(module)} - {folder(module)}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", sorted(SANS_IO))
def test_protocol_logic_has_no_socket_no_clock_and_no_loop(module: str) -> None:
    """Neither itself nor through what it imports of ours."""
    for name in reached(module, everywhere=True):
        foreign = {full.split(".")[0] for full in imported(name, everywhere=True)}
        assert foreign & IO_MODULES == set(), f"by way of {name}"


def test_the_command_line_starts_with_little() -> None:
    started = {folder(name) for name in reached("cli.main", everywhere=False)}
    assert started <= CLI_START | {"cli"}


def test_every_import_is_a_statement() -> None:
    """An import by name would escape the rules above."""
    for module, tree in MODULES.items():
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert names & {"__import__", "import_module", "run_module"} == set(), module


def test_nothing_shipped_imports_the_lab_or_the_tests() -> None:
    foreign = {
        name.split(".")[0] for module in MODULES for name in imported(module, everywhere=True)
    }
    assert foreign & {"lab", "tests"} == set()
    assert (PROJECT / "lab" / "__init__.py").exists()


def test_the_root_holds_ground_values_alone() -> None:
    assert len([name for name in MODULES if folder(name) == GROUND and name != GROUND]) <= 9


def test_the_unit_tests_stand_in_the_folders_of_what_they_test() -> None:
    tests = PROJECT / "tests" / "unit"
    found = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    known = {path.parent.relative_to(ROOT) for path in ROOT.rglob("*.py")}
    assert found - known == {Path("lab")}
