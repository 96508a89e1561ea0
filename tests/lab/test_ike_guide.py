"""The guide to IKE says what works: its configurations and commands, as they are written."""

from __future__ import annotations

import contextlib
import re
import secrets
import shlex
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from esp_gw.cli.main import main
from esp_gw.config.provision import DEFAULT_NAMES
from esp_gw.demo.netns import add_address
from esp_gw.demo.pair import PairPlan
from tests.support.charon import BASE, Charon, Installation
from tests.support.ike_rig import child
from tests.support.ike_sites import Site
from tests.support.init_ike import add_settings, make_ends, start
from tests.support.labtools import MakePair, edit, ping, until

GUIDE = (Path(__file__).parents[2] / "docs/guide/ike.md").read_text()
BLOCK = re.compile(r"```(\w*)\n(.*?)```\n", re.DOTALL)
FILE = re.compile(r"`/etc/swanctl/conf\.d/(\w+)\.conf`:\n\n```\n(.*?)```\n", re.DOTALL)


def commands(word: str) -> list[str]:
    """Return the commands of the guide that begin with a word, each on one line."""
    blocks = [text.replace("\\\n", " ") for kind, text in BLOCK.findall(GUIDE) if kind == "sh"]
    return [line for text in blocks for line in text.splitlines() if line.startswith(word)]


@pytest.mark.parametrize("command", commands("esp-gw init"))
def test_init_takes_what_the_guide_gives_it(command: str, tmp_path: Path) -> None:
    assert main([*shlex.split(command)[1:], "--out", str(tmp_path)]) == 0


def test_a_further_end_gets_a_certificate_by_the_commands_of_the_guide(tmp_path: Path) -> None:
    (init,) = [line for line in commands("esp-gw init") if "--certificates" in line]
    assert main([*shlex.split(init)[1:], "--out", str(tmp_path)]) == 0
    folder = tmp_path / "ca"
    script = "\n".join(["set -e", *commands("umask"), *commands("pki ")])
    subprocess.run(["sh", "-c", script], cwd=folder, check=True, timeout=60)
    verify = ("pki", "--verify", "--in", "pi-c.pem", "--cacert", "ca.pem")
    subprocess.run(verify, cwd=folder, check=True, timeout=60)
    shown = subprocess.run(
        ["pki", "--print", "--in", "pi-c.pem"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "pi-c" in shown
    assert stat.S_IMODE((folder / "pi-c.key").stat().st_mode) == 0o600


def test_the_road_warrior_gets_an_address_and_reaches_the_network(
    tmp_path: Path, installed: Installation, stack: contextlib.ExitStack
) -> None:
    files = dict(FILE.findall(GUIDE))
    secret = secrets.token_hex(32)
    (minimal,) = [text for kind, text in BLOCK.findall(GUIDE) if kind == "yaml"]

    def provision(output: Path, plan: PairPlan, settings: Sequence[Mapping[str, object]]) -> None:
        for name, file in zip(DEFAULT_NAMES, ("gateway", "laptops"), strict=True):
            folder = output / name / "swanctl" / "conf.d"
            folder.mkdir(parents=True)
            (folder / f"{file}.conf").write_text(files[file].replace("SECRET", secret))
            (output / name / "gateway.yaml").write_text(minimal)
        assert yaml.safe_load(minimal) == {"gateway": {"port": 4500}}
        add_settings(output, settings)

    pair, (laptop, gateway) = make_ends(tmp_path, installed, stack, provision)
    add_address(gateway.gateway.namespace, "10.2.0.1/24", "lo")
    start(pair, [laptop, gateway])
    (initiate,) = re.findall(r"`sudo (swanctl --initiate --child gateway)`", GUIDE)
    laptop.charon.swanctl(*shlex.split(initiate)[1:], "--timeout", "20")
    host = laptop.gateway.namespace
    until(lambda: ping(host, "10.2.0.1", count=1), "the tunnel carries")
    assert "10.99.0.1/32" in host.ip("address", "show", "dev", "wan")
    assert ping(host, "10.2.0.1", count=20) == 20
    (there,) = gateway.children()
    assert there["peer"] == "laptop"
    laptop.charon.swanctl("--terminate", "--ike", "gateway")
    until(lambda: "10.99.0.1" not in host.ip("address", "show"), "the address is gone")


def test_a_host_moves_from_kernel_libipsec_with_its_connections(
    make_pair_of_one_engine: MakePair,
    installed: Installation,
    tmp_path: Path,
    stack: contextlib.ExitStack,
) -> None:
    pair = make_pair_of_one_engine()
    edit(pair.a, lambda document: document.pop("tunnels"))
    host, peer = pair.a.namespace, pair.b.namespace
    sites = []
    for number, namespace in enumerate((host, peer)):
        add_address(namespace, f"10.{number + 1}.0.1/24", "lo")
        folder = tmp_path / "ab"[number]
        folder.mkdir()
        charon = Charon(namespace, folder, installed, pair.a.socket)
        stack.callback(charon.close)
        site = Site(charon, pair.a, number)
        libipsec = "kernel-libipsec kernel-netlink socket-default vici updown"
        charon.settings = {"load": f"{BASE} {libipsec}", "install_routes": "yes"}
        site.configure({"net": child(number, esp_proposals="aes256gcm16-x25519")})
        charon.start()
        sites.append(site)
    moving = sites[0].charon
    moving.initiate()
    until(lambda: ping(host, "10.2.0.1", count=1), "the former tunnel carries")
    moving.stop()
    pair.a.start()
    moving.settings = {}
    moving.start()
    moving.initiate()
    until(lambda: ping(host, "10.2.0.1", count=1), "the tunnel carries")
    assert len(sites[0].spis()) == 2
    assert ping(host, "10.2.0.1", count=20) == 20
