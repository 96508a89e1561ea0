"""Virtual machines: Debian's kernel under qemu's software emulation, over the host's files.

image.py      the unpacked kernel packages
root.py       the root filesystem of a machine of another architecture
cache.py      folders made once and verified at each use
debian.py     Debian packages of any architecture
initramfs.py  the initramfs, which mounts the host's files
machine.py    one qemu process and the commands run in it
agent.py      the guest's end: runs the commands
protocol.py   the protocol between machine and agent
"""
