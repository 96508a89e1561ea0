"""Benchmark of esp_gw against its peers, in interleaved rounds of one session.

plan.py       sections of subjects, their rounds and run lengths
measures.py   the tests by name; tcp.py, udp.py, ping.py, costs.py: what they do
datagrams.py  generator and counting receiver, with pacer.py     loss.py   search for a rate
cpu.py        processor time of daemons and of the machine       streams.py  TCP in the background
hosts.py      two namespaces and their daemons; gateways.py, tunnels.py, wireguard.py, systems.py:
              setup and teardown of each system in them
charon.py     the systems whose keys charon finds; ike.py, probe.py, losses.py: what only they have
scale.py      thousands of SAs              core.py     the core alone
rounds.py     the scheduler of turns, and the failures
results.py    medians, ranges, JSON         targets.py  ratios to reach
report.py     the tables; table.py, report_systems.py, report_ike.py, report_native.py
plots.py      plots
"""
