"""libreswan of Debian 12, unpacked beside the machine's own programs: folder and configuration."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab.vm.__main__ import CACHE
from lab.vm.cache import Recipe, cached

HELPERS = "/usr/libexec/ipsec"
_NAME = "libreswan"
ROOT = CACHE / _NAME / "root"
"""Where `fetch_libreswan` puts it: a virtual machine has no network, and finds it here."""
_CONF = """\
config setup
    uniqueids=yes

conn net
    auto=add
    ikev2=insist
    authby=secret
    left={addresses[0]}
    right={addresses[1]}
    leftid=@{identities[0]}
    rightid=@{identities[1]}
    leftsubnet={nets[0]}
    rightsubnet={nets[1]}
    leftupdown=%disabled
    ike=aes_gcm256-sha2_256-dh31
    esp=aes_gcm256;dh31
    esn={esn}
    encapsulation={encapsulation}
    retransmit-timeout=20s
    dpddelay={dpddelay}
    dpdaction=restart
"""


def ipsec_conf(**values: object) -> str:
    """Return ipsec.conf(5) with the connection `net`; pairs begin with libreswan's own end."""
    return _CONF.format(**values)


def fetch_libreswan() -> None:
    """Unpack libreswan with the libraries that it needs into ROOT, unless it is there."""

    def make(folder: Path, work: Path) -> dict[str, str]:
        root = folder / ROOT.name
        command = ["mmdebstrap", "--quiet", "--variant=extract", "--include=libreswan"]
        command += ["bookworm", str(root), "deb http://deb.debian.org/debian bookworm main"]
        made = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert made.returncode == 0, made.stderr
        for name in ("dev", "proc", "run", "tmp", "var/lib/ipsec/nss"):
            (root / name).mkdir(parents=True, exist_ok=True)
        return {}

    cached(CACHE, Recipe(_NAME, "libreswan", make), print)
