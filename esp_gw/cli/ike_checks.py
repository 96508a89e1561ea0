"""The checks of `esp-gw doctor` on charon: its plugin, its settings, AppArmor, what it has loaded.

A machine without charon has none of these findings; one whose charon has nothing to do with the
gateway has one.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from esp_gw.cli import apparmor
from esp_gw.cli.finding import Finding, State
from esp_gw.cli.strongswan_conf import Settings, read_settings
from esp_gw.cli.unit import ANSWER_TIMEOUT
from esp_gw.errors import EspGwError
from esp_gw.network.plan_file import PlanFile

CHARONS = (Path("/usr/sbin/charon-systemd"), Path("/usr/lib/ipsec/charon"))
PLUGINS = Path("/usr/lib/ipsec/plugins")
CONF = Path("/etc/strongswan.conf")
PLUGIN = "kernel-esp-gw"
ML = "ml"
"""strongSwan's own plugin, built here where a package lacks it."""
INSTALL = "run 'scripts/install-ike'"
RESTART = "run 'systemctl restart strongswan'"

_NOTE = re.compile(rb"esp_gw: [a-z-]+ for charon ([0-9.]+), sources")
"""The note of scripts/charon.sh in a plugin that it has built."""
_DEFAULT_SOCKET = "/run/esp-gw/control.sock"
_DEFAULT_FWMARK = 0xE5B


def ike_findings(control_socket: Path, fwmark: int | None) -> Iterator[Finding]:
    """Yield the findings on charon for a gateway with this control socket.

    `fwmark` is None where no configuration says it.
    """
    charons = [path for path in CHARONS if path.exists()]
    if not charons:
        return
    version = _installed_version()
    named = f"charon {version}" if version else "charon, which no package of Debian has installed"
    settings, unreadable = _settings()
    if not _file(PLUGIN).exists() and (settings is None or PLUGIN not in settings.plugins()):
        yield Finding(State.OK, "charon", f"{named}, without the plugin {PLUGIN}")
        return
    yield Finding(State.OK, "charon", named)
    yield _built_for(PLUGIN, version)
    if _file(ML).exists() and _note(_file(ML)):
        yield _built_for(ML, version)
    if settings is None:
        yield unreadable
    else:
        yield from _configured(settings, control_socket, fwmark)
    if apparmor.runs():
        for program in charons:
            yield from _confined(apparmor.Profile(program), control_socket)
    yield _loaded()


def prefixes_for_ike(state_dir: Path) -> list[str]:
    """Return the prefixes that the guard's plan has of IKE, none where it can't be read."""
    try:
        stored = PlanFile(state_dir).read()
    except EspGwError:
        return []
    standing = () if stored is None else stored.standing
    return sorted({str(pair.remote) for each in standing for pair in each.selectors})


def closed_for_ike(prefixes: Sequence[str]) -> Iterator[Finding]:
    """Yield the finding on prefixes that are closed until charon protects them again."""
    if prefixes:
        found = f"{', '.join(prefixes)}: closed until charon protects it again"
        todo = "start esp-gw and charon; if no charon will come, run 'esp-gw guard down'"
        yield Finding(State.WARNING, "closed for ike", found, todo)


def _file(plugin: str) -> Path:
    return PLUGINS / f"libstrongswan-{plugin}.so"


def _settings() -> tuple[Settings | None, Finding]:
    try:
        return read_settings(CONF), Finding(State.OK, "ike settings", str(CONF))
    except EspGwError as error:
        found = f"{error.where}: {error.what}"
        return None, Finding(State.FAULT, "ike settings", found, "see strongswan.conf(5)")


def _installed_version() -> str:
    """Return the upstream version of the charon that is installed; empty if dpkg doesn't know."""
    wanted = "${db:Status-Status} ${Version}\n"
    done = _run("dpkg-query", "--show", f"--showformat={wanted}", "libstrongswan")
    for line in done.stdout.splitlines() if done else ():
        status, _, version = line.partition(" ")
        if status == "installed":
            return version.rpartition(":")[2].partition("-")[0]
    return ""


def _run(*command: str) -> subprocess.CompletedProcess[str] | None:
    """Return what a program said; None without that program or an answer."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=ANSWER_TIMEOUT,
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _note(plugin: Path) -> str:
    """Return the version of charon that a plugin is built for; empty if it doesn't say."""
    try:
        note = _NOTE.search(plugin.read_bytes())
    except OSError:
        return ""
    return note[1].decode() if note else ""


def _built_for(plugin: str, installed: str) -> Finding:
    path = _file(plugin)
    if not path.exists():
        return Finding(State.FAULT, "ike plugin", f"{path}: does not exist", INSTALL)
    version = _note(path)
    if not version:
        found = f"{path} doesn't say which charon it is built for"
        return Finding(State.WARNING, "ike plugin", found, INSTALL)
    found = f"{path} is built for charon {version}"
    if installed and version != installed:
        found += f", and {installed} is installed: it may crash"
        return Finding(State.FAULT, "ike plugin", found, INSTALL)
    return Finding(State.OK, "ike plugin", found)


def _configured(settings: Settings, socket: Path, fwmark: int | None) -> Iterator[Finding]:
    faults = [*_wrong_plugins(settings), *_wrong_gateway(settings, socket, fwmark)]
    for found, todo in faults:
        yield Finding(State.FAULT, "ike settings", found, todo)
    if not faults:
        yield Finding(State.OK, "ike settings", f"{CONF}: {PLUGIN} is loaded, socket-default isn't")


def _wrong_plugins(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the plugins to load, and the remedies."""
    rank = settings.priority(PLUGIN)
    conf = f"set 'load = 10' in {CONF.parent}/strongswan.d/charon/{PLUGIN}.conf"
    if rank <= 0:
        modular = conf if settings.is_modular else f"set 'load_modular = yes' in {CONF}"
        yield f"{CONF} lets charon load no {PLUGIN}", modular
    for other in ("kernel-netlink", "kernel-libipsec", "kernel-pfkey"):
        # With the same rank this one is the first, for charon was built without it.
        if 0 < rank < settings.priority(other):
            yield f"charon prefers {other} to {PLUGIN}", conf
    for other in ("socket-default", "socket-dynamic"):
        if settings.priority(other) > 0:
            found = f"charon loads {other}, which takes the gateway's port"
            yield found, f"{INSTALL}, or unload it"


def _wrong_gateway(
    settings: Settings, socket: Path, fwmark: int | None
) -> Iterator[tuple[str, str]]:
    """Yield which values of the plugin differ from the gateway's, and the remedies."""
    conf = f"in {CONF.parent}/strongswan.d/charon/{PLUGIN}.conf"
    theirs = settings.value("plugins", PLUGIN, "socket") or _DEFAULT_SOCKET
    if Path(theirs) != socket:
        yield f"charon looks for the gateway at {theirs}", f"set 'socket = {socket}' {conf}"
    text = settings.value("plugins", PLUGIN, "fwmark")
    try:
        mark = int(text, 0) if text else _DEFAULT_FWMARK
    except ValueError:
        mark = -1
    if fwmark is not None and mark != fwmark:
        theirs = text or hex(mark)
        found = f"charon's packets have the mark {theirs}, those of the gateway {fwmark:#x}"
        yield found, f"set 'fwmark = {fwmark:#x}' {conf}"


def _confined(profile: apparmor.Profile, socket: Path) -> Iterator[Finding]:
    mode = profile.mode()
    if mode == "" or not profile.file.exists():
        return
    remedy = f"run 'apparmor_parser --replace {profile.file}'"
    found = f"the profile {profile.name} allows {socket}"
    is_allowed, is_strict = profile.allows(socket), mode in (apparmor.ENFORCE, None)
    if not is_allowed:
        found = f"the profile {profile.name} has no rule for {socket}"
        remedy = f"add '{socket} rw,' to {profile.local}, {remedy}"
    denied = profile.last_denial(socket)
    if denied is not None and denied > profile.changed():
        when = datetime.fromtimestamp(denied).astimezone().isoformat(" ", "seconds")
        yield Finding(State.FAULT, "apparmor", f"{found}, and denied it at {when}", remedy)
    elif is_allowed:
        yield Finding(State.OK, "apparmor", found)
    elif is_strict and apparmor.confines_sockets():
        yield Finding(State.WARNING, "apparmor", f"{found}, and may deny it", remedy)
    else:
        why = "this kernel asks for none" if is_strict else f"its mode is {mode}"
        yield Finding(State.OK, "apparmor", f"{found}, and {why}")


def _loaded() -> Finding:
    """Return the finding on the charon that runs."""
    done = _run("swanctl", "--stats")
    if done is None:
        found = "charon can't be asked: swanctl is missing, or got no answer"
        return Finding(State.OK, "ike", found)
    if done.returncode:
        lines = done.stderr.splitlines()
        said = next((line for line in lines if "connect" in line), "no answer")
        return Finding(State.OK, "ike", f"charon doesn't run, or doesn't answer: {said}")
    plugins = re.findall(r"^loaded plugins: (.*)$", done.stdout, re.MULTILINE)
    loaded = plugins[0].split() if plugins else []
    if PLUGIN not in loaded:
        todo = f"{RESTART}; its log says why if it stays so"
        return Finding(State.FAULT, "ike", f"charon runs without {PLUGIN}", todo)
    if others := [name for name in loaded if name.startswith("socket-")]:
        found = f"charon runs with {', '.join(others)}, which takes the gateway's port"
        return Finding(State.FAULT, "ike", found, RESTART)
    return Finding(State.OK, "ike", f"charon runs with {PLUGIN}")
