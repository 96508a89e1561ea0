"""The documents say what the code says, and their links lead somewhere."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import click
import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from esp_gw.cli.main import cli
from esp_gw.config.models import HalfModel, KeySource, PolicyModel, TunnelModel
from esp_gw.control.protocol import PREFIX
from esp_gw.daemon.added_tunnels import AddedTunnels
from esp_gw.daemon.additions import Additions
from esp_gw.daemon.owner import Owner
from esp_gw.daemon.profile import Profiler
from esp_gw.daemon.service import Service
from esp_gw.desired import GatewaySettings, settings_of
from esp_gw.errors import FAILED, INTERRUPTED, NO_PERMISSION, NOT_RUNNING, WRONG_CONFIG, WRONG_STATE
from esp_gw.model import SUITES, DropReason
from esp_gw.network.firewall import FirewallDrop
from esp_gw.network.link import TUN_OVERFLOW

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
REFERENCE = DOCS / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("strongswan/*.md")])

MAX_README = 120
MAX_ARCHITECTURE = 130

CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"!?\[(?:[^][]|\[[^][]*\])*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)
PATH = re.compile(r"`((?:esp_gw|lab|scripts|configs|systemd|tests|docs)/[\w./-]*)`")
"""A place of the checkout, as documents name it."""
MODULE = re.compile(r"`([\w/]+\.py)`")
"""A module, with as many of its folders as tell which one it is."""
MODULES = [str(path) for top in ("esp_gw", "lab", "tests") for path in (ROOT / top).rglob("*.py")]


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return CODE.sub("", text)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """Every anchor of a page; the second heading of one name has a number."""
    found: set[str] = set()
    for heading in HEADING.findall(prose(page.read_text())):
        name = base = slug(heading)
        number = 0
        while name in found:
            number += 1
            name = f"{base}-{number}"
        found.add(name)
    return found


def broken_links(page: Path) -> Iterator[str]:
    """The relative links of a page that lead nowhere."""
    for target in LINK.findall(CODE_SPAN.sub("", prose(page.read_text()))):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        path = (page.parent / place).resolve() if place else page
        is_broken = not path.exists() or not path.is_relative_to(ROOT)
        if is_broken or (anchor and (path.suffix != ".md" or anchor not in anchors(path))):
            yield target


def section(page: Path, heading: str) -> str:
    """The text under a heading, up to the next one of any level."""
    text = page.read_text()
    (found,) = re.finditer(rf"^#+ {re.escape(heading)}$", text, re.MULTILINE)
    return re.split(r"^#+ ", text[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> dict[str, dict[str, str]]:
    """The first table of a text: its cells by row and column."""
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the tables in a text, by the names in code in their first cells."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_link_that_leads_nowhere_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# A `name`: of it\n\n## Twice\n\n## Twice\n")
    (tmp_path / "page.md").write_text(
        "[a](other.md) [b](other.md#a-name-of-it) [c](other.md#twice-1) [d](#here) `[e](none)`\n"
        "[f [g]](none.md) ![h](none.svg) [i](other.md#none) [j](#none) [k](../..)\n\n"
        "## Here\n\n```\n[l](none)\n## None\n```\n"
    )
    assert list(broken_links(tmp_path / "page.md")) == [
        *("none.md", "none.svg", "other.md#none", "#none", "../.."),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_place_that_a_page_names_is_there(page: Path) -> None:
    text = prose(page.read_text())
    assert {place for place in PATH.findall(text) if not (ROOT / place).exists()} == set()
    assert {
        name
        for name in MODULE.findall(text)
        if not any(path.endswith(f"/{name}") for path in MODULES)
    } == set()


NAMED_TEST = re.compile(r"(tests/[\w/]+\.py)::(test_\w+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    missing = [
        f"{file}::{name}"
        for file, name in NAMED_TEST.findall((ROOT / page).read_text())
        if not (ROOT / file).exists() or f"def {name}(" not in (ROOT / file).read_text()
    ]
    assert missing == []


def test_the_threat_model_names_a_test_or_says_that_an_attempt_is_not_defended() -> None:
    text = (DOCS / "explanation" / "threat-model.md").read_text()
    lines = [line for line in text.splitlines() if re.match(r"\| (?!attempt|mistake|---)", line)]
    assert len(lines) > 20
    bare = [line for line in lines if not NAMED_TEST.search(line)]
    assert [line for line in bare if "not defended" not in line and "do not" not in line] == []


FORMER = rows(section(ROOT / "CONTRIBUTING.md", "Former places"))


def present(names: list[str]) -> Iterator[object]:
    """Resolve the names of a cell: in full, from esp_gw on, or beside the one before."""
    before = ""
    for name in names:
        beside = f"{before.rpartition('.')[0]}.{name}"
        full = next(
            full for full in (name, f"esp_gw.{name}", beside) if "." in full and is_there(full)
        )
        yield pkgutil.resolve_name(full)
        before = full


def is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("former", FORMER)
def test_a_former_place_leads_to_one_that_is_there(former: str) -> None:
    names = re.findall(r"`([^`]+)`", FORMER[former][1])
    assert len(list(present(names))) == len(names) > 0


def test_every_page_of_the_documents_can_be_reached_from_the_readme() -> None:
    seen, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        links = LINK.findall(prose(page.read_text()))
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links}
        waiting += [path for path in targets if path.suffix == ".md" and path not in seen]
    assert set(DOCS.rglob("*.md")) <= seen


def test_the_readme_and_the_architecture_are_short() -> None:
    assert len(README.read_text().splitlines()) <= MAX_README
    architecture = DOCS / "explanation" / "architecture.md"
    assert len(architecture.read_text().splitlines()) <= MAX_ARCHITECTURE


def test_the_figures_of_the_readme_are_those_of_the_last_run() -> None:
    ratios = table(
        section(DOCS / "explanation" / "performance.md", "Ratios: native to each other system")
    )
    tcp, udp = ratios["one TCP stream"], ratios["UDP, 64 bytes, under 1 % loss"]
    wanted = [
        *(tcp["wireguard-go"], tcp["openvpn"], tcp["strongswan"]),
        udp["the best peer"].split(" ")[0],
    ]
    found = re.findall(r"([\d.]+) times", section(README, "Speed").replace("\n", " "))
    assert [float(number) for number in found] == [
        pytest.approx(float(figure), abs=0.05) for figure in wanted
    ]


def test_the_picture_is_what_the_script_draws() -> None:
    drawn = subprocess.run(
        [sys.executable, ROOT / "scripts" / "draw-packet-way", "-"], capture_output=True, check=True
    )
    assert drawn.stdout == (DOCS / "packet-way.svg").read_bytes()


def test_every_drop_reason_has_a_row_with_meaning_and_cause() -> None:
    text = (REFERENCE / "drop-reasons.md").read_text()
    found = rows(text)
    assert list(found) == [*DropReason, TUN_OVERFLOW, *FirewallDrop]
    assert all(len(cells) == 3 and all(cells) for cells in found.values())


def written(default: object) -> str:
    """A default as the reference has it; what has none begins with the word none."""
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`"


def settings() -> Iterator[tuple[str, str, str]]:
    """Every setting of the YAML files: heading of the reference, name, default."""
    defaults = GatewaySettings()
    for name, setting in settings_of(GatewaySettings).items():
        default = getattr(defaults, name)
        key = setting.key or name
        if is_dataclass(setting.parse):
            assert is_dataclass(default)
            heading = f"{setting.section}.{key}"
            yield setting.section, key, "[below]"
            for inner in settings_of(type(default)):
                yield heading, inner, written(getattr(default, inner))
        else:
            yield setting.section, key, f"`{default:#x}`" if name == "fwmark" else written(default)
    models: dict[str, type[BaseModel]] = {
        "tunnels": TunnelModel,
        "tunnels.outbound, tunnels.inbound": HalfModel,
        "Keys": KeySource,
        "policies": PolicyModel,
    }
    for heading, model in models.items():
        for name, field in model.model_fields.items():
            required = field.default is PydanticUndefined
            yield heading, name, "required" if required else written(field.default)


@pytest.mark.parametrize(("heading", "name", "default"), list(settings()))
def test_every_setting_is_in_the_reference_with_its_default(
    heading: str, name: str, default: str
) -> None:
    cells = rows(section(REFERENCE / "configuration.md", heading))[name]
    assert len(cells) == 4
    assert cells[1]
    assert re.split(r"[:(]", cells[2])[0] == default


def test_the_reference_names_no_setting_that_is_not_there() -> None:
    known: dict[str, set[str]] = {}
    for heading, name, _ in settings():
        known.setdefault(heading, set()).add(name)
    for heading, names in known.items():
        assert set(rows(section(REFERENCE / "configuration.md", heading))) == names


def test_every_suite_is_in_the_reference_with_its_sizes() -> None:
    found = rows(section(REFERENCE / "configuration.md", "Suites"))
    assert list(found) == list(SUITES)
    for name, suite in SUITES.items():
        cells = found[name]
        names = re.findall(r"`([^`]+)`", cells[0])
        assert cells[1] == str(suite.key_len)
        assert cells[2].split(", ")[names.index(name)] == str(suite.icv_len)
        assert cells[3] == str(2 * suite.keymat_len)


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command of the tree that does something, with its full name."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            # A hidden one is a former spelling.
            if not inner.hidden:
                yield from commands(inner, f"{path} {name}")
    else:
        yield path, command


COMMANDS = dict(commands(cli, "esp-gw"))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_is_in_the_reference_with_its_options(path: str) -> None:
    text = section(REFERENCE / "command-line.md", f"`{path}`")
    for parameter in COMMANDS[path].params:
        for option in [*parameter.opts, *parameter.secondary_opts]:
            if isinstance(parameter, click.Option):
                assert re.search(rf"`[^`]*{option}\b", text), option


def test_the_reference_names_no_command_that_is_not_there() -> None:
    text = (REFERENCE / "command-line.md").read_text()
    assert set(re.findall(r"^### `(.*)`$", text, re.MULTILINE)) == set(COMMANDS)


def test_every_exit_status_is_in_the_reference() -> None:
    text = (REFERENCE / "command-line.md").read_text()
    found = {int(status) for status in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    ours = {FAILED, NOT_RUNNING, NO_PERMISSION, WRONG_STATE, WRONG_CONFIG, INTERRUPTED}
    assert found == {0, click.UsageError("").exit_code, *ours}


def test_every_method_of_the_control_socket_is_in_the_reference() -> None:
    service = object.__new__(Service)
    service._additions = object.__new__(Additions)
    service._tunnels = object.__new__(AddedTunnels)
    service._profiler = object.__new__(Profiler)
    methods = {**service.handlers(), **Owner.handlers(object.__new__(Owner))}
    assert set(rows(section(REFERENCE / "control.md", "Methods"))) == {
        name.removeprefix(PREFIX) for name in methods
    }
