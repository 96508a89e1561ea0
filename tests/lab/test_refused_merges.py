"""A TUN device that refuses super-packets, as that of some kernels does, loses nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.labtools import MakePair, carry_tcp, drops
from tests.support.manager import managed

SOURCE = Path(__file__).parents[1] / "support" / "refuse_super_packets.c"
WARNING = "the TUN refuses super-packets"


def test_super_packets_that_the_tun_refuses_are_written_one_by_one(
    make_pair: MakePair, tmp_path: Path
) -> None:
    program = tmp_path / "refuse-super-packets"
    subprocess.run(["cc", "-O1", "-o", str(program), str(SOURCE)], check=True)
    pair = make_pair(inner_versions=(4, 6))
    pair.a.start()
    with managed(pair.b) as service:
        service.launch(before=[str(program)])
        service.until_told("READY=1")
        merges = pair.b.ask("status")["offload"]["merge"]["in_use"]
        assert merges == (pair.b.ask("status")["engine"] == "native")
        for version in (4, 6):
            carry_tcp(pair.a.namespace, pair.b.namespace, pair.plan.inner(1, version))
        target = pair.plan.inner(1)
        carry_tcp(pair.a.namespace, pair.b.namespace, target, "-u", "-b", "500M", "-l", "1200")
        assert "tun-error" not in drops(pair.b)
        merge = pair.b.ask("status")["offload"]["merge"]
        assert ("EINVAL" in merge["why"]) == merges
        assert merge["in_use"] is False
        journal = service.journal.read_text()
    # Once for TCP and once for UDP, however many workers meet it.
    assert journal.count(WARNING) == 2 * merges
