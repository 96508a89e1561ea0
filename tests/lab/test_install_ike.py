"""scripts/install-ike on this machine's charon: folders are copies, apt and systemd are fakes."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_gw.demo.netns import end, namespaces
from tests.support.charon import ROOT, build_plugin, installed_version
from tests.support.ike_sandbox import Sandbox, run
from tests.support.labtools import until

PLUGIN = "/usr/lib/ipsec/plugins/libstrongswan-kernel-esp-gw.so"
ML = "/usr/lib/ipsec/plugins/libstrongswan-ml.so"
CONF = "/etc/strongswan.d/charon/kernel-esp-gw.conf"
SOCKETS = "/etc/strongswan.d/esp-gw.conf"
DROP_IN = "/etc/systemd/system/strongswan.service.d/esp-gw.conf"
LOCAL = "/etc/apparmor.d/local/usr.sbin.charon-systemd"
RULE = "/run/esp-gw/control.sock rw,"
VERSION = installed_version()
HOLD = "/run/systemd/system/strongswan.service.d/esp-gw-install.conf"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """strongswan/out as a checkout has it after a build: charon's sources, and a plugin."""
    out = tmp_path_factory.mktemp("out")
    for version in {VERSION, "5.9.8"}:
        built = build_plugin(tmp_path_factory.mktemp("built"), version=version)
        (out / version).mkdir()
        shutil.copy2(built.plugins / Path(PLUGIN).name, out / version)
        source = ROOT / "strongswan/out" / f"source-{version}"
        (out / source.name).symlink_to(source)
    return out


@pytest.fixture
def sandbox(tmp_path: Path, out: Path) -> Sandbox:
    return Sandbox(tmp_path, out)


def installed(sandbox: Sandbox) -> list[str]:
    """Install; return the lines that it said."""
    result = sandbox.install()
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    return result.stderr.splitlines()


def refused(sandbox: Sandbox) -> str:
    """Try to install, which must fail and change nothing; return the line that says why."""
    before = sandbox.tree()
    result = sandbox.install()
    assert result.returncode == 1, result.stderr
    assert sandbox.tree() == before
    errors = [line for line in result.stderr.splitlines() if not line.startswith("building ")]
    (error,) = errors
    assert error.startswith("error: ")
    return error


@contextlib.contextmanager
def running_charon(sandbox: Sandbox) -> Iterator[list[str]]:
    """Run charon as it is configured; yield the words that begin a command beside it."""
    with namespaces("ike") as (host,):
        process = host.start(*sandbox.command("/usr/sbin/charon-systemd"))
        try:
            yield ["nsenter", "--target", str(process.pid), "--mount", "--net"]
        finally:
            end(process, 30)


def doctors_states(inside: list[str]) -> dict[str, set[str]]:
    """Return what `esp-gw doctor` says of charon: the states by their subjects."""
    program = "import sys; from esp_gw.cli.main import main; sys.exit(main(['doctor', '--json']))"
    path = f"PYTHONPATH={ROOT}"
    report = json.loads(run([*inside, "env", path, sys.executable, "-c", program]).stdout)
    found: dict[str, set[str]] = {}
    for finding in report["findings"]:
        if finding["what"].startswith(("charon", "ike")):
            found.setdefault(finding["what"], set()).add(finding["state"])
    return found


def test_each_thing_that_is_installed_is_one_line(sandbox: Sandbox) -> None:
    sandbox.built.unlink()
    before = sandbox.tree()
    lines = installed(sandbox)
    changed = {name for name, found in sandbox.tree().items() if before.get(name) != found}
    assert changed >= {PLUGIN, CONF, SOCKETS, DROP_IN, LOCAL}
    for name in changed:
        assert len([line for line in lines if name in line]) == 1, (name, lines)
    assert lines[0] == f"building the plugin kernel-esp-gw for charon {VERSION}"
    assert lines[-1].startswith("next: ")
    assert "install-ike" in sandbox.place(LOCAL).read_text()
    # Files of packages are as they were.
    assert all(name.startswith("/etc/apparmor.d/local/") for name in changed & set(before))
    assert not {call.split()[1] for call in sandbox.calls()} & {"start", "enable", "restart"}


def test_a_second_run_changes_nothing_and_says_so(sandbox: Sandbox) -> None:
    first = installed(sandbox)
    before = sandbox.tree()
    again = installed(sandbox)
    assert sandbox.tree() == before
    assert len([line for line in again if line.startswith("unchanged: ")]) == len(
        [line for line in first if line.startswith(("installed: ", "wrote: "))]
    )


def test_charon_loads_the_plugin_and_no_other_socket(sandbox: Sandbox, tmp_path: Path) -> None:
    installed(sandbox)
    log = tmp_path / "charon.log"
    sandbox.place("/etc/strongswan.d/zz-log.conf").write_text(
        f"charon {{ filelog {{ f {{ path = {log}\n flush_line = yes\n default = 1\n }} }} }}\n"
    )
    with running_charon(sandbox) as inside:
        until(lambda: run([*inside, "swanctl", "--stats"]).returncode == 0, "charon runs", 30)
        found = run([*inside, "swanctl", "--stats"]).stdout
        (loaded,) = [line for line in found.splitlines() if line.startswith("loaded plugins: ")]
        assert "kernel-esp-gw" in loaded.split()
        assert not [name for name in loaded.split() if name.startswith("socket-")]
        script = str(sandbox.checkout / "scripts/install-ike")
        path = f"PATH={sandbox.programs}:/usr/sbin:/usr/bin:/sbin:/bin"
        lines = run([*inside, "env", path, script]).stderr.splitlines()
        assert lines[-1] == "charon runs, and has loaded the plugin kernel-esp-gw"
        assert doctors_states(inside) == {
            "charon": {"ok"},
            "ike plugin": {"ok"},
            "ike settings": {"ok"},
            "ike": {"ok"},
        }
        sandbox.place(CONF).unlink()
        assert doctors_states(inside)["ike settings"] == {"fault"}
        lines = run([*inside, "env", path, script]).stderr.splitlines()
        assert "has read none of this" in lines[-1] and "systemctl restart" in lines[-1]
    assert "esp_gw: " in log.read_text()


def test_files_that_were_changed_are_kept_and_named(sandbox: Sandbox) -> None:
    installed(sandbox)
    for name in (CONF, SOCKETS, DROP_IN):
        path = sandbox.place(name)
        path.write_text(path.read_text() + "# mine\n")
    before = sandbox.tree()
    lines = installed(sandbox)
    assert sandbox.tree() == before
    kept = [line for line in lines if line.startswith("kept: ")]
    assert [line.split()[1].rstrip(",") for line in kept] == [CONF, SOCKETS, DROP_IN]


@pytest.mark.parametrize("mine", ["/srv/mine r,", "/srv/mine r,\n", f"#{RULE}\n"])
def test_local_rules_of_others_stay(sandbox: Sandbox, mine: str) -> None:
    local = sandbox.place(LOCAL)
    local.write_text(mine)
    installed(sandbox)
    lines = local.read_text().splitlines()
    assert lines[0] == mine.strip() and lines[-1] == RULE
    assert lines.count(RULE) == 1


def test_a_profile_is_loaded_where_apparmor_runs(sandbox: Sandbox) -> None:
    sandbox.fake("aa-enabled", "exit 0")
    installed(sandbox)
    loads = [call for call in sandbox.calls() if call.startswith("apparmor_parser ")]
    assert [call.rpartition("/")[2] for call in loads] == [
        name
        for name in ("usr.sbin.charon-systemd", "usr.lib.ipsec.charon")
        if sandbox.place(f"/etc/apparmor.d/{name}").exists()
    ]
    installed(sandbox)
    assert not [call for call in sandbox.calls() if call.startswith("apparmor_parser ")]


def test_a_profile_that_apparmor_refuses_is_an_error(sandbox: Sandbox) -> None:
    sandbox.fake("aa-enabled", "exit 0")
    sandbox.fake("apparmor_parser", "echo 'AppArmor parser error: line 3' >&2; exit 1")
    result = sandbox.install()
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: AppArmor refuses the profile /etc/apparmor.d/usr.sbin")
    assert last.endswith(": AppArmor parser error: line 3")


def test_a_built_plugin_is_taken_only_if_it_is_of_these_sources(sandbox: Sandbox) -> None:
    sandbox.forget_sources()
    sandbox.fake("curl", "exit 6")
    assert not [line for line in installed(sandbox) if line.startswith("building ")]
    with (sandbox.checkout / "strongswan/esp_gw_sa.c").open("a") as file:
        file.write("/* Another version. */\n")
    assert "no source of strongswan" in refused(sandbox)


def test_a_plugin_that_was_built_for_another_machine_is_built_anew(sandbox: Sandbox) -> None:
    content = bytearray(sandbox.built.read_bytes())
    content[18] ^= 0xFF
    sandbox.built.write_bytes(content)
    assert [line for line in installed(sandbox) if line.startswith("building ")]


def test_a_charon_for_which_no_plugin_is_made_is_refused(sandbox: Sandbox) -> None:
    sandbox.fake("dpkg-query", "echo installed 5.9.1-1+deb11u4")
    error = refused(sandbox)
    assert "charon 5.9.1 is not one of those" in error and "nothing was changed" in error


def test_so_is_one_that_apt_would_install(sandbox: Sandbox) -> None:
    sandbox.fake("dpkg-query", "echo config-files 5.9.8-5; exit 0")
    sandbox.fake("apt-cache", "printf '  Installed: (none)\\n  Candidate: 6.0.5-1\\n'")
    assert "charon 6.0.5 is not one of those" in refused(sandbox)


def test_an_apt_that_knows_no_charon_is_told_of(sandbox: Sandbox) -> None:
    sandbox.fake("dpkg-query", "exit 1")
    sandbox.fake("apt-cache", "printf 'charon-systemd:\\n  Candidate: (none)\\n'")
    sandbox.fake("apt-get", "exit 100")
    assert "apt has no package charon-systemd: check the network" in refused(sandbox)
    assert "apt-get update -qq" in sandbox.calls()


def test_without_a_network_nothing_is_changed(sandbox: Sandbox) -> None:
    sandbox.forget_sources()
    shutil.rmtree(sandbox.built.parent)
    sandbox.fake("curl", "exit 6")
    error = refused(sandbox)
    assert f"no source of strongswan {VERSION}" in error and "check the network" in error
    assert not list(sandbox.out.glob(f"*{VERSION}*")) and not list(sandbox.out.glob("fetch*"))


def test_another_archive_than_the_pinned_one_is_refused(sandbox: Sandbox) -> None:
    sandbox.forget_sources()
    sandbox.built.unlink()
    sandbox.fake("curl", 'echo wrong >"$7"')
    assert "another one at" in refused(sandbox)


def test_a_read_only_folder_is_told_of(sandbox: Sandbox) -> None:
    sandbox.mounts += ["mount --bind /etc /etc", "mount -o remount,bind,ro /etc"]
    assert "/etc can't be written to: is its file system mounted read-only?" in refused(sandbox)


def test_an_ordinary_user_is_refused(sandbox: Sandbox) -> None:
    # Where that user can get at it.
    sandbox.mounts.append(f"mount --bind {sandbox.checkout} /mnt")
    before = sandbox.tree()
    words = ("setpriv", "--reuid", "65534", "--clear-groups")
    result = sandbox.run(*words, "/mnt/scripts/install-ike")
    assert result.returncode == 1
    assert result.stderr == "error: only root may install: run it as root, or by sudo\n"
    assert sandbox.tree() == before


def test_arguments_are_a_mistake(sandbox: Sandbox) -> None:
    result = sandbox.run(str(sandbox.checkout / "scripts/install-ike"), "--uninstall")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


def watch_systemd(sandbox: Sandbox) -> Path:
    """Let systemd be there, and no charon; each of its reloads records if charon's unit is held.

    Returns the place for charon.
    """
    place = sandbox.hide("/usr/sbin/charon-systemd")
    sandbox.mounts.append("mkdir -p /run/systemd/system")
    held = sandbox.record(f"[ -e {HOLD} ] && echo charon is held || echo charon is free")
    sandbox.fake("systemctl", f'[ "$1" != daemon-reload ] || {held}')
    return place


def test_a_new_charon_is_neither_started_nor_enabled(sandbox: Sandbox, tmp_path: Path) -> None:
    place = watch_systemd(sandbox)
    charon = f"{tmp_path}/sbin/charon-systemd"
    held = sandbox.record(f"test -e {HOLD} && echo charon is held")
    install = f"ln -s {charon} {place}; {held}"
    sandbox.fake("apt-get", f"case $* in *install*) {install} ;; esac")
    lines = installed(sandbox)
    assert "disabled: strongswan.service, which its package enables" in lines
    assert [call for call in sandbox.calls() if not call.startswith("aa-enabled")] == [
        "apt-get update -qq",
        "apt-get install -y -qq --no-install-recommends charon-systemd",
        "charon is held",
        "systemctl disable --quiet strongswan.service",
        "systemctl daemon-reload",
        "charon is free",
        "systemctl daemon-reload",
        "charon is free",
    ]
    installed(sandbox)
    assert sandbox.calls() == []


def test_what_makes_certificates_is_installed_too(sandbox: Sandbox) -> None:
    sandbox.hide("/usr/bin/pki")
    sandbox.fake("apt-get", "exit 0")
    installed(sandbox)
    install = "apt-get install -y -qq --no-install-recommends strongswan-pki"
    assert install in sandbox.calls()


def test_an_apt_that_fails_leaves_charon_free(sandbox: Sandbox) -> None:
    watch_systemd(sandbox)
    result = sandbox.install()
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: apt-get could not install charon")
    assert sandbox.calls()[-2:] == ["systemctl daemon-reload", "charon is free"]


def test_ml_for_another_charon_is_removed_and_that_of_others_is_not(sandbox: Sandbox) -> None:
    sandbox.fake("dpkg-query", "echo installed 5.9.8-5")
    ml = sandbox.place(ML)
    ml.write_bytes(b"\x7fELF a package's own")
    assert any(line.startswith(f"kept: {ML}") for line in installed(sandbox))
    conf = sandbox.place("/etc/strongswan.d/charon/esp-gw-ml.conf")
    conf.touch()
    ml.write_bytes(b"\x7fELF esp_gw: ml for charon 6.0.1, sources 01ab\0")
    assert any(line.startswith(f"removed: {ML}") for line in installed(sandbox))
    assert not ml.exists() and not conf.exists()


def test_ml_is_built_for_the_charon_that_lacks_it_alone(sandbox: Sandbox) -> None:
    result = sandbox.run(str(sandbox.checkout / "scripts/build-ike-ml"), "5.9.8")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ml is built for charon 6.0.1 alone, not '5.9.8'")
    assert result.stderr.count("\n") == 1
