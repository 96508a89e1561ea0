"""`scripts/iperf3-two-pis`: iperf3 between two machines, outside their tunnel and through it.

ssh.py       the connection to a machine
answers.py   parsers, sans-IO: iperf3's reports, tunnels, temperatures
measure.py   the checks, then the measurement
report.py    the table
"""
