"""Crates import one way: esp-core <- esp-linux <- esp-dataplane <- esp-py; no file has a circle."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CRATES = Path(__file__).parents[2] / "crates"
LAYERS = ["esp-core", "esp-linux", "esp-dataplane", "esp-py"]
"""Each crate imports only those before it."""
UNSAFE = "esp-linux"
"""The crate that may have unsafe code."""

Module = tuple[str, ...]
"""`wire::ip` is ("wire", "ip"), the crate's root is ()."""

NOISE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(\#*)".*?"\1|b?"(?:\\.|[^"\\])*"|b?'(?:\\[^']+|[^'\\])'""", re.DOTALL
)
TEST_ITEM = re.compile(r"#\[cfg\((?:test|all\(test\b[^\]]*)\)\]\s*(?:#\[[^\]]*\]\s*)*")
USE = re.compile(r"(?P<public>\bpub(?:\([^)]*\))?\s+)?\buse\s+(?P<tree>[^;]+);")
CHILD = re.compile(r"\bmod\s+(\w+)\s*;")
PATH = re.compile(r"(?<![\w:])(?:r#)?(\w+(?:\s*::\s*\w+)+)")


@dataclass
class Source:
    """One file of a crate, without its tests, comments and strings."""

    path: Path
    text: str
    children: set[str]
    uses: list[tuple[Module, str]] = field(default_factory=list)
    exports: dict[str, Module] = field(default_factory=dict)


def blank(match: re.Match[str]) -> str:
    return '""' if match[0].lstrip("br#").startswith('"') else " "


def without_tests(text: str) -> tuple[str, set[str]]:
    """Cut what is for tests alone; with the names of the modules that are."""
    names: set[str] = set()
    while match := TEST_ITEM.search(text):
        end = re.compile(r"[;{]").search(text, match.end())
        assert end is not None
        if module := re.compile(r"(?:pub\s+)?mod\s+(\w+)").match(text, match.end()):
            names.add(module[1])
        stop, depth = end.end(), int(end[0] == "{")
        while depth:
            depth += {"{": 1, "}": -1}.get(text[stop], 0)
            stop += 1
        text = text[: match.start()] + text[stop:]
    return text, names


def leaves(tree: str) -> Iterator[tuple[Module, str]]:
    """Every path of a `use`, with the name that it gets here."""
    tree = tree.strip()
    head, brace, rest = tree.partition("{")
    prefix = tuple(part for part in re.split(r"\s*::\s*", head.strip()) if part)
    if not brace:
        path, _, name = tree.partition(" as ")
        parts = tuple(part for part in re.split(r"\s*::\s*", path.strip()) if part)
        if parts == ("self",):  # of a group: the prefix itself
            parts = ()
        yield parts, name.strip() or (parts[-1] if parts else "")
        return
    depth, start = 0, 0
    inner = rest[: rest.rindex("}")]
    for at, letter in enumerate(inner + ","):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            if item := inner[start:at].strip():
                for parts, name in leaves(item):
                    yield prefix + parts, name or prefix[-1]
            start = at + 1


class Crate:
    """The files of one crate, and which of them use which."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "src"
        self.files: dict[Module, Source] = {}
        self.foreign: dict[str, set[Module]] = {}
        self._read((), self.root / "lib.rs")
        self.edges = {module: self._imports(module) for module in self.files}

    def _read(self, module: Module, path: Path) -> None:
        text, tests = without_tests(NOISE.sub(blank, path.read_text()))
        children = set(CHILD.findall(text))
        source = self.files[module] = Source(path, text, children)
        for match in USE.finditer(text):
            for parts, name in leaves(match["tree"]):
                source.uses.append((parts, name))
                if match["public"]:
                    source.exports[name] = parts
        inside = path.parent if path.name in ("lib.rs", "mod.rs") else path.with_suffix("")
        for child in children - tests:
            places = [inside / f"{child}.rs", inside / child / "mod.rs"]
            self._read((*module, child), next(place for place in places if place.is_file()))

    def _absolute(self, module: Module, parts: Module) -> Module | None:
        """A path from the crate's root; None for one into another crate."""
        if parts[0] == "crate":
            return parts[1:]
        if parts[0] not in ("self", "super"):
            return (*module, *parts) if parts[0] in self.files[module].children else None
        base = module
        while parts and parts[0] in ("self", "super"):
            base = base[:-1] if parts[0] == "super" else base
            parts = parts[1:]
        return base + parts

    def home(self, path: Module) -> Module:
        """The module whose file has what a path names, behind all re-exports."""
        module: Module = ()
        for at, part in enumerate(path):
            if (*module, part) in self.files:
                module = (*module, part)
                continue
            behind = self.files[module].exports.get(part)
            target = self._absolute(module, behind) if behind else None
            return self.home(target + path[at + 1 :]) if target else module
        return module

    def _imports(self, module: Module) -> set[Module]:
        source = self.files[module]
        rest = USE.sub(";", source.text)
        found = [parts for parts, name in source.uses if self._is_used(source, parts, name, rest)]
        found += [tuple(re.split(r"\s*::\s*", match[1])) for match in PATH.finditer(rest)]
        imported: set[Module] = set()
        for parts in found:
            path = self._absolute(module, parts)
            if path is not None:
                imported.add(self.home(path))
            else:
                self.foreign.setdefault(parts[0], set()).add(module)
        return imported - {module}

    @staticmethod
    def _is_used(source: Source, parts: Module, name: str, rest: str) -> bool:
        """False for a name that a module only re-exports from its own children."""
        passed_on = name in source.exports and parts[0] in source.children
        return not passed_on or re.search(rf"\b{name}\b", rest) is not None

    def folders(self) -> dict[str, set[str]]:
        """The top modules that each of the crate's top modules uses."""
        graph: dict[str, set[str]] = {}
        for module, imported in self.edges.items():
            if module:
                others = {other[0] for other in imported if other}
                graph.setdefault(module[0], set()).update(others - {module[0]})
        return graph


def manifest(crate: str) -> dict[str, dict[str, object]]:
    return tomllib.loads((CRATES / crate / "Cargo.toml").read_text())


def circle(graph: dict[str, set[str]] | dict[Module, set[Module]]) -> list[object]:
    """One of the circles of a graph; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


PARSED = {name: Crate(CRATES / name) for name in LAYERS}
every_crate = pytest.mark.parametrize("name", LAYERS)


def test_every_crate_but_that_of_the_fuzz_targets_has_a_layer() -> None:
    assert {path.parent.name for path in CRATES.glob("*/Cargo.toml")} == {*LAYERS, "fuzz"}


@every_crate
def test_every_file_is_looked_at(name: str) -> None:
    crate = PARSED[name]
    seen = {source.path for source in crate.files.values()}
    unseen = {path.name for path in crate.root.rglob("*.rs") if path not in seen}
    assert unseen <= {"tests.rs"}


def test_the_parser_finds_what_is_there() -> None:
    core, data = PARSED["esp-core"], PARSED["esp-dataplane"]
    assert ("drop",) in core.edges["esp", "replay"]  # through the root's re-export
    assert ("wire", "ip") in core.edges["wire", "inner"]  # through that of its folder
    assert {"wire", "policy", "drop"} <= core.folders()["esp"]
    assert ("worker", "outbound") in data.edges["worker", "thread"]
    assert {"esp_core", "esp_linux"} <= data.foreign.keys()


@every_crate
def test_a_crate_imports_none_above_it(name: str) -> None:
    below = LAYERS[: LAYERS.index(name)]
    ours = {crate.replace("-", "_"): crate for crate in LAYERS} | {"esp_gw_core": "esp-py"}
    imported = {ours[crate] for crate in PARSED[name].foreign if crate in ours}
    wanted = manifest(name).get("dependencies", {}).keys() & {*LAYERS, "esp-gw-core"}
    assert (imported | wanted) <= {*below}


@every_crate
def test_no_folder_imports_itself_by_way_of_others(name: str) -> None:
    assert circle(PARSED[name].folders()) == []


@every_crate
def test_no_file_imports_itself_by_way_of_others(name: str) -> None:
    assert circle(PARSED[name].edges) == []


@every_crate
def test_unsafe_code_is_in_one_crate(name: str) -> None:
    unsafe = re.compile(r"\bunsafe\s*(?:\{|fn\b|impl\b|trait\b|extern\b)|\bunsafe\(")
    files = [path for path in (CRATES / name).rglob("*.rs") if path.is_relative_to(CRATES / name)]
    found = [path for path in files if unsafe.search(NOISE.sub(blank, path.read_text()))]
    if name == UNSAFE:
        assert found
        assert {path.parent for path in found} == {CRATES / name / "src"}
    else:
        assert found == []


@every_crate
def test_the_compiler_keeps_unsafe_code_out(name: str) -> None:
    """In the crate that has it, out of every module that is not named in lib.rs."""
    text = (PARSED[name].root / "lib.rs").read_text()
    assert f"#![{'deny' if name == UNSAFE else 'forbid'}(unsafe_code)]" in text
    allowing = [
        module
        for module, source in PARSED[name].files.items()
        if "allow(unsafe_code)" in source.text
    ]
    assert allowing == ([()] if name == UNSAFE else [])


def crate_of(folder: Path, files: dict[str, str]) -> Crate:
    for name, text in files.items():
        path = folder / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Crate(folder)


@pytest.mark.parametrize(
    "import_of_a",
    [
        "use crate::a::A;",
        "use crate::{other::X, a::{self, A}};",
        "use super::a;",
        "fn f() { crate::a::g() }",
        "use crate::A;",
        "use crate::facade::B as C;",
    ],
)
def test_a_circle_is_found_however_it_is_written(tmp_path: Path, import_of_a: str) -> None:
    files = {
        "lib.rs": "mod a;\nmod b;\nmod facade;\nmod other;\npub use a::A;\n",
        "a.rs": "use crate::b::B;\n",
        "b.rs": import_of_a,
        "facade.rs": "pub use crate::a::A as B;\n",
        "other.rs": "pub struct X;\n",
    }
    crate = crate_of(tmp_path, files)
    assert circle(crate.edges) != []
    assert circle(crate.folders()) != []


def test_comments_strings_and_tests_are_no_imports(tmp_path: Path) -> None:
    b = """
        // use crate::a::A;
        /* crate::a::g() */
        const TEXT: &str = "crate::a::A";
        const RAW: &str = r#"use crate::a::"A";"#;
        #[cfg(test)]
        #[allow(clippy::unwrap_used)]
        mod tests { use crate::a::A; fn f() { if true { crate::a::g() } } }
    """
    crate = crate_of(
        tmp_path, {"lib.rs": "mod a;\nmod b;\n", "a.rs": "use crate::b::B;\n", "b.rs": b}
    )
    assert circle(crate.edges) == []


def test_a_folder_that_only_passes_its_files_on_is_no_part_of_a_circle(tmp_path: Path) -> None:
    files = {
        "lib.rs": "mod wire;\n",
        "wire/mod.rs": "mod sum;\nmod ip;\npub use sum::Sum;\npub use ip::Ip;\n",
        "wire/sum.rs": "pub struct Sum;\n",
        "wire/ip.rs": "use super::Sum;\npub struct Ip(Sum);\n",
    }
    assert circle(crate_of(tmp_path, files).edges) == []
    files["wire/mod.rs"] += "pub fn zero() -> Ip { todo() }\n"
    files["wire/sum.rs"] += "use super::zero;\n"
    assert circle(crate_of(tmp_path, files).edges) != []
