"""`scripts/iperf3-two-pis`: iperf3 between two machines, beside their tunnel and through it.

ssh.py       a machine that commands run on
answers.py   what the machines said, sans-IO: iperf3's reports, tunnels, temperatures
measure.py   what is checked first, then measured
report.py    the table and the JSON document
"""
