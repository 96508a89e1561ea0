"""The benchmark: esp_gw beside its peers, in interleaved rounds of one session.

plan.py       what is measured: sections of subjects, their rounds and lengths
systems.py    each system set up in two namespaces, and taken down
measures.py   the tests        loss.py    the highest rate with little loss
scale.py      thousands of SAs                                    core.py    the core alone
rounds.py     one turn after the other, and what failed
results.py    medians and ranges; the JSON     report.py   tables     plots.py   pictures
"""
