"""Settings of a card in a namespace, made and taken back, and policies of this kernel.

Of everything else, /sys shows the machine's own: nothing but the card in the namespace is changed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from esp_gw.demo.netns import Namespace, namespaces, wire

CARD = """
import json, sys
from dataclasses import replace
from pathlib import Path
from pyroute2.ethtool.ioctl import IoctlEthtool
from esp_gw.tune.advice import advise
from esp_gw.tune.ethtool import Ethtool
from esp_gw.tune.look import look
from esp_gw.tune.machine import Use
from esp_gw.tune.making import make, make_again, take_back
from esp_gw.tune.places import Places
from esp_gw.tune.record import RecordFile

def values():
    # Read by other means than those that set them.
    shown = IoctlEthtool("wan").get_features()
    queue = Path("/sys/class/net/wan/queues/rx-0")
    return {
        "gro": shown["rx-gro"], "gso": shown["tx-generic-segmentation"],
        "rps": int((queue / "rps_cpus").read_text().replace(",", ""), 16),
        "flows": int((queue / "rps_flow_cnt").read_text()),
    }

def ours():
    # In a container, too: the flow table of all cards may be the host's.
    machine = replace(look(["wan"], places), contained=False)
    return [each for each in advise(machine, Use()) if each.place.card == "wan"]

places, book = Places(), RecordFile(Path(sys.argv[1]))
book.create()
for name in ("rx-gro", "tx-generic-segmentation"):
    places.ethtool.set_feature("wan", name, False)
told = [values()]
wanted = ours()
steps = [make(wanted, places, book, "boot")]
told.append(values())
right = all(each.is_right for each in ours())
places.ethtool.set_feature("wan", "rx-gro", False)
steps.append(make_again(places, book, "boot"))
told.append(values())
steps.append(take_back(places, book))
told.append(values())
refused = []
for name, part in (("wan", "rx-none"), ("none", "rx-gro")):
    try:
        Ethtool().set_feature(name, part, True)
    except OSError as error:
        refused.append(error.errno)
print(json.dumps({
    "values": told, "right": right, "refused": refused,
    "steps": [[[str(step.place), step.done] for step in each] for each in steps],
}))
"""
POLICIES = """
import json
from esp_gw.network.xfrm_policies import kernel_policies
found = [[p.direction, str(p.source), str(p.destination), p.drops] for p in kernel_policies()]
print(json.dumps(found))
"""


def python(namespace: Namespace, program: str, *arguments: str) -> Any:
    return json.loads(namespace.run(sys.executable, "-c", program, *arguments).stdout)


def test_a_cards_settings_are_made_made_again_and_taken_back(tmp_path: Path) -> None:
    with namespaces("tune-a", "tune-b") as (a, b):
        wire(a, b)
        found = python(a, CARD, str(tmp_path / "record"))
    before, made, again, after = found["values"]
    assert (before["gro"], before["gso"], before["rps"], before["flows"]) == (False, False, 0, 0)
    assert (made["gro"], made["gso"]) == (True, True)
    if len(os.sched_getaffinity(0)) > 1:
        assert made["rps"] > 0
        assert made["flows"] > 0
    assert found["right"]
    assert again == made
    assert after == before
    first, second, third = found["steps"]
    assert ["wan rx-gro feature", True] in first
    assert second == [["wan rx-gro feature", True]]
    assert sorted(third) == sorted(first)
    assert all(done for _, done in first)
    # EOPNOTSUPP of a feature that is none, ENODEV.
    assert found["refused"] == [95, 19]
    assert not (tmp_path / "record/made.json").exists()


def test_policies_are_those_that_the_kernel_has() -> None:
    with namespaces("tune-x") as (host,):
        for policy in (
            "src 10.1.0.0/24 dst 10.2.0.0/24 dir out tmpl src 192.0.2.1 dst 192.0.2.2 proto esp"
            " mode tunnel",
            "src fd00:1::/64 dst fd00:2::/64 dir in action block",
            "src 10.9.0.0/16 dst 0.0.0.0/0 dir fwd",
        ):
            host.ip("xfrm", "policy", "add", *policy.split())
        found = python(host, POLICIES)
    assert sorted(found) == [
        ["in", "fd00:1::/64", "fd00:2::/64", True],
        ["out", "10.1.0.0/24", "10.2.0.0/24", False],
    ]
