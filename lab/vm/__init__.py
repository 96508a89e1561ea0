"""Virtual machines: Debian's kernel under qemu's software emulation, over this machine's files.

image.py      the kernel's packages, unpacked
root.py       the files for a machine of another architecture
cache.py      what is fetched once, and checked at each use
debian.py     Debian's packages of any architecture
initramfs.py  what the machine boots into, and how it comes to this machine's files
machine.py    one running qemu and the commands in it
agent.py      its other end: runs the commands inside
protocol.py   what the two say to each other
"""
