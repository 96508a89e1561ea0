"""The Debian package: its contents, and its life in a copy of this machine's root."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.vm.__main__ import CACHE, CHECKOUT
from lab.vm.packages import LATER, make_packages
from lab.waiting import holds_within
from tests.support.engines import ENGINES

pytestmark = pytest.mark.root

RELEASE = platform.freedesktop_os_release()["VERSION_ID"]
# A root of its own: the machine's, with all changes in memory. No systemd runs in it.
ROOT = """
set -eu
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
for name in proc sys dev; do mount --rbind "/$name" "$1/root/$name"; done
mount --bind "$2" "$1/root/mnt"
for name in run tmp; do mount -t tmpfs tmpfs "$1/root/$name"; done
ip link set lo up
ip address add 192.0.2.1/24 dev lo
echo ready
exec sleep 600
"""
# Files that dpkg and the tools that make users change, and nothing else does.
BOOKKEEPING = (
    *("var/lib/dpkg/", "var/log/", "var/cache/"),
    *("etc/group", "etc/passwd", "etc/gshadow", "etc/shadow", "etc/subuid", "etc/subgid"),
    "etc/.pwd.lock",
)


class Root:
    """A root directory and a network of its own, in which commands run as root."""

    def __init__(self, folder: Path, process: int) -> None:
        self._folder = folder
        self._enter = ("nsenter", "-t", str(process), "--mount", "--net")
        self._chroot = (
            *self._enter,
            *("chroot", str(folder / "root"), "env", "-i"),
            *("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "DEBIAN_FRONTEND=noninteractive"),
        )

    def ok(self, *command: str) -> str:
        """Run a command that must succeed and return its output."""
        result = subprocess.run(
            [*self._chroot, *command], check=False, capture_output=True, text=True, timeout=100
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    def shell(self, script: str) -> str:
        return self.ok("sh", "-ec", script)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self._chroot, *command])

    def network(self) -> str:
        """Everything that a gateway may leave in the kernel's network."""
        return self.shell(
            "nft list ruleset; for f in -4 -6; do ip $f rule; ip $f route show table all; done"
        )

    def changed(self) -> set[str]:
        """Paths that differ from the machine's own; of a folder only what is in it."""
        found = subprocess.run(
            [*self._enter, "find", f"{self._folder}/upper", "!", "-type", "d", "-printf", "%P\\n"],
            check=True,
            capture_output=True,
            text=True,
        )
        return {path for path in found.stdout.splitlines() if not path.startswith(BOOKKEEPING)}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert "native" in ENGINES, "a package holds the native engine: build it"
    return make_packages(tmp_path_factory.mktemp("deb"), CACHE, RELEASE, CHECKOUT, print)


@pytest.fixture
def root(package: Path, tmp_path: Path) -> Iterator[Root]:
    command = ("unshare", "--mount", "--net", "--propagation", "private")
    with subprocess.Popen(
        [*command, "sh", "-c", ROOT, "sh", str(tmp_path), str(package.parent)],
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield Root(tmp_path, process.pid)
        finally:
            process.kill()


def contents(package: Path) -> dict[str, tuple[str, str]]:
    """Return mode and owner of each path of a package."""
    listing = subprocess.run(
        ["dpkg-deb", "--contents", str(package)], check=True, capture_output=True, text=True
    ).stdout
    found = {}
    for line in listing.splitlines():
        mode, owner, _, _, _, path = line.split(maxsplit=5)
        found[path.split(" -> ")[0]] = (mode, owner)
    return found


@pytest.mark.timeout(600)
def test_a_package_holds_the_gateway_and_nothing_that_root_alone_may_write_is_open(
    package: Path,
) -> None:
    found = contents(package)
    assert {owner for _, owner in found.values()} == {"root/root"}
    assert [path for path, (mode, _) in found.items() if mode[0] != "l" and "w" in mode[4:]] == []
    for path in (
        *("./usr/bin/esp-gw", "./usr/lib/systemd/system/esp-gw.service"),
        *("./usr/lib/systemd/system/esp-gw-guard.service", "./usr/lib/sysusers.d/esp-gw.conf"),
        "./usr/lib/systemd/system/esp-gw-tune.service",
        *("./usr/lib/tmpfiles.d/esp-gw.conf", "./usr/lib/udev/rules.d/60-esp-gw.rules"),
        *("./usr/lib/systemd/networkd.conf.d/esp-gw.conf", "./usr/share/doc/esp-gw/copyright"),
        *("./usr/share/man/man1/esp-gw.1.gz", "./usr/share/man/man1/esp-gw-sa-add.1.gz"),
        "./usr/share/bash-completion/completions/esp-gw",
    ):
        assert path in found
    tops = {path.split("/")[1] for path in found if path != "./"}
    assert tops == {"opt", "usr"}
    named = " ".join(found)
    assert "esp_gw_core" in named
    for left_out in ("uvloop", "/pip/", "__pycache__", "/lab/", "/tests/support"):
        assert left_out not in named


@pytest.mark.timeout(300)
def test_it_is_installed_upgraded_and_purged_without_a_trace(root: Root) -> None:
    network = root.network()
    before = root.ok("cat", "/etc/passwd", "/etc/group")
    root.shell(
        "mkdir -p /opt/esp-gw/bin && touch /opt/esp-gw/pyvenv.cfg /opt/esp-gw/bin/old"
        " && ln -s /opt/esp-gw/bin/esp-gw /usr/local/bin/esp-gw"
        " && echo '[Service]' >/etc/systemd/system/esp-gw.service"
    )
    said = root.shell("dpkg --force-depends -i /mnt/esp-gw_*.deb")
    assert "'esp-gw init' writes a configuration" in said
    # In place of what scripts/install installs.
    assert "taking the place of the installation from a checkout" in said
    root.shell("! test -e /opt/esp-gw/bin/old && ! test -L /usr/local/bin/esp-gw")
    root.shell("! test -e /etc/systemd/system/esp-gw.service")
    assert root.ok("cat", "/etc/systemd/system/esp-gw.service.replaced") == "[Service]\n"
    owners = root.ok("stat", "-c", "%n %U:%G %a", "/var/lib/esp-gw", "/etc/esp-gw/keys")
    assert owners.splitlines() == [
        "/var/lib/esp-gw esp-gw:esp-gw 700",
        "/etc/esp-gw/keys root:esp-gw 750",
    ]
    enabled = "/etc/systemd/system/multi-user.target.wants/esp-gw.service"
    assert root.ok("readlink", enabled).strip().endswith("/systemd/system/esp-gw.service")
    # By Debian's Python, with the packages that the package brings.
    program = (
        "import sys, esp_gw_core; print(sys.prefix, sys.version_info[0], esp_gw_core.__file__)"
    )
    told = root.ok("/opt/esp-gw/bin/python3", "-I", "-c", program).split()
    assert told[:2] == ["/opt/esp-gw", "3"]
    assert told[2].startswith("/opt/esp-gw/lib/")

    root.shell(
        "cd /tmp && esp-gw init --local 192.0.2.1 --remote 192.0.2.2"
        " --local-net 10.1.0.0/24 --remote-net 10.2.0.0/24 && cp -r pi-a/. /etc/esp-gw"
        " && esp-gw ledger create && systemctl disable esp-gw && mkdir /run/esp-gw"
    )
    gateway = root.start("esp-gw", "run", "--config", "/etc/esp-gw")
    try:
        # The status is 1 with a warning, 3 without an answer.
        answers = "esp-gw status --json >/tmp/status 2>&1 || [ $? -eq 1 ] && echo answers || true"
        assert holds_within(30, lambda: "answers" in root.shell(answers))
        assert '"engine": "native"' in root.ok("cat", "/tmp/status")
    finally:
        gateway.terminate()
        gateway.wait(30)
    keys = root.ok("sha256sum", "/etc/esp-gw/gateway.yaml", "/var/lib/esp-gw/ledger.db")

    root.ok("dpkg", "--force-depends", "-i", f"/mnt/{LATER}")
    assert root.ok("esp-gw", "--version")
    assert keys == root.ok("sha256sum", "/etc/esp-gw/gateway.yaml", "/var/lib/esp-gw/ledger.db")
    # A person's choice stands.
    root.shell(f"! test -e {enabled}")

    root.ok("dpkg", "--remove", "esp-gw")
    assert keys == root.ok("sha256sum", "/etc/esp-gw/gateway.yaml", "/var/lib/esp-gw/ledger.db")
    # Closed still.
    assert "10.2.0.0/24" in root.network()

    root.ok("dpkg", "--purge", "esp-gw")
    assert root.network() == network
    assert root.ok("cat", "/etc/passwd", "/etc/group") == before
    assert root.changed() == set()
