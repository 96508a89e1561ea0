"""Benchmark of esp_gw against its peers, in interleaved rounds of one session.

plan.py       sections of subjects, their rounds and run lengths
systems.py    setup and teardown of each system in two namespaces
measures.py   the tests               loss.py     search for the highest rate under the loss limit
scale.py      thousands of SAs        core.py     the core alone
rounds.py     the scheduler of turns, and the failures
results.py    medians, ranges, JSON   report.py   tables     plots.py   plots
"""
