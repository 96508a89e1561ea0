"""Virtual machines: Debian's kernel, emulated by qemu, over the host's files or a disk.

image.py      the unpacked kernel packages
root.py       the root filesystem of a machine of another architecture
userland.py   Debian's userland with systemd, of any release
disk.py       a disk with that userland and the gateway, installed as a user does
cache.py      folders made once and verified at each use
debian.py     Debian packages of any architecture
initramfs.py  the initramfs, which mounts the host's files or the disk
qemu.py       the machine's hardware: qemu's command line
machine.py    one qemu process and the commands run in it
monitor.py    qemu's monitor, which plugs the cable in and out
agent.py      the guest's end: runs the commands
protocol.py   the protocol between machine and agent
"""
