"""The initramfs of a machine: busybox, a few modules and one script, sans-IO.

Without a disk, the script mounts the machine's root (the host's, or one for its architecture) and
the other shared folders, each read-only (9p) below an overlay in memory. The machine can write
anywhere without changing any file of the host. The script then starts the agent.

With a disk, that is the root, and its own init starts, with the agent as a unit of systemd.
"""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from esp_gw.errors import LabError

MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console")
"""Modules needed for the host's files and the agent's port; modprobe finds the rest there."""
DISK_MODULES = (
    *("virtio_pci", "9pnet_virtio", "9p", "virtio_console", "virtio_blk", "ext4"),
    # ext4 asks for crc32c by that name, for which an initramfs without modprobe has no answer.
    "crc32c_generic",
)
"""Modules needed for a machine with a disk."""
AGENT_UNIT = "esp-gw-vm-agent.service"
PORT = "/dev/vport0p1"
OUT = "/out"
MODULES_INSIDE = "/lib/modules"
"""Folder of the modules, in the initramfs and in the machine."""
BLACKLIST = "/etc/modprobe.d/esp-gw-vm.conf"

_INIT = """\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install /bin
fail() { echo "esp-gw-vm: $*"; poweroff -f; exit; }
mount -t devtmpfs dev /dev || fail "no /dev"
# Depended-on modules come first.
for module in @LOAD@; do insmod "$module" || fail "can't load $module"; done
share=trans=virtio,version=9p2000.L,msize=524288
mkdir -p /memory /root
mount -t tmpfs -o size=75% memory /memory || fail "no memory"
show() { # TAG FOLDER
    lower=/lower/$1 upper=/memory/$1 work=/memory/$1.work
    mkdir -p "$lower" "$upper" "$work" "$2"
    mount -t 9p -o "ro,cache=loose,$share" "$1" "$lower" || fail "can't mount the share $1"
    mount -t overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work" overlay "$2" ||
        fail "no overlay"
}
show host /root
@SHOW_CHECKOUT@
mkdir -p /root/proc /root/sys /root/dev /root/run /root@OUT@ /root@MODULES@ /root/etc/modprobe.d
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts -o ptmxmode=666 pts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs -o mode=755 run /root/run
mkdir -p /root/run/lock
@MOUNT_OUT@
ln -s @TREE@ /root@MODULES@/@VERSION@
@WRITE_FILES@
# A machine id of its own, different from the host's and from any other machine's.
tr -d - < /root/proc/sys/kernel/random/uuid > /root/etc/machine-id
exec switch_root /root /bin/sh -c @START@
"""

_START = """\
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
hostname vm
ip link set lo up
modprobe -a tun virtio_net
cd /
{agent}
echo o > /proc/sysrq-trigger
sleep 60
"""


_DISK_INIT = """\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install /bin
fail() { echo "esp-gw-vm: $*"; poweroff -f; exit; }
mount -t devtmpfs dev /dev || fail "no /dev"
for module in @LOAD@; do insmod "$module" || fail "can't load $module"; done
mkdir -p /root
mount -t ext4 -o noatime /dev/vda /root || fail "can't mount the disk"
show() { # TAG FOLDER
    mkdir -p "/root$2"
    mount -t 9p -o "ro,cache=loose,trans=virtio,version=9p2000.L,msize=524288" "$1" "/root$2" ||
        fail "can't mount the share $1"
}
show modules @MODULES@/@VERSION@
show checkout @CHECKOUT@
# As from an initrd: systemd keeps this /run, and so the disk has nothing of the test.
mount -t tmpfs -o mode=755 run /root/run
units=/root/run/systemd/system
mkdir -p "$units/sysinit.target.wants"
echo @AGENT@ > "$units/@UNIT@"
ln -s "../@UNIT@" "$units/sysinit.target.wants/@UNIT@"
exec switch_root /root /sbin/init
"""

_AGENT = """\
[Unit]
Description=Agent of the virtual machine
# It runs from early in the start until the machine is off.
DefaultDependencies=no
[Service]
WorkingDirectory={checkout}
Environment=PYTHONPATH={checkout} PYTHONDONTWRITEBYTECODE=1
ExecStart={agent}
KillMode=process
OOMScoreAdjust=-1000
"""


def load_order(modules_dep: str, builtin: str, wanted: Iterable[str]) -> list[str]:
    """Return the files of modules and their dependencies, each after its own dependencies.

    `modules_dep` and `builtin` are depmod's files modules.dep and modules.builtin (modules.dep(5)).
    Names have underscores. Raises LabError for a module that is neither loadable nor built in.
    """
    needs: dict[str, tuple[str, list[str]]] = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[module_name(path)] = (path, rest.split())
    inside = {module_name(path) for path in builtin.split()}
    order: list[str] = []
    for name in wanted:
        if name in inside:
            continue
        if name not in needs:
            raise LabError(f"this kernel has no module {name}")
        path, others = needs[name]
        # depmod lists the first module to load last.
        order += [other for other in (*reversed(others), path) if other not in order]
    return order


def module_name(path: str) -> str:
    """Return the module name of a file: without .ko or .ko.xz, with underscores."""
    return PurePosixPath(path).name.partition(".ko")[0].replace("-", "_")


def blacklist_file(modules: Iterable[str]) -> str:
    """Return the contents of BLACKLIST: modules that not even the kernel can load."""
    # A plain 'blacklist' line would still allow 'modprobe NAME'.
    return "".join(f"install {name} /bin/false\n" for name in modules)


def init_script(
    load: Sequence[str],
    version: str,
    tree: str,
    agent: Sequence[str],
    files: Mapping[str, str],
    checkout: str | None,
    out: bool,
) -> bytes:
    """Return the script /init: loads the modules `load`, switches to the root, starts `agent`.

    `tree` is the folder of the kernel's modules, `version` its name. `files` maps paths inside to
    the text written there. `checkout` is the path at which the share `checkout` is mounted, None
    for no such share. If `out`, the share `out` is mounted at OUT.
    """
    mount = f'mount -t 9p -o "cache=mmap,$share" out /root{OUT} || fail "no {OUT}"' if out else ""
    show = f"show checkout {shlex.quote(f'/root{checkout}')}" if checkout is not None else ""
    write = (f"echo {shlex.quote(text)} > {shlex.quote(f'/root{p}')}" for p, text in files.items())
    values = {
        "LOAD": _insmod_list(load),
        "OUT": OUT,
        "MODULES": MODULES_INSIDE,
        "MOUNT_OUT": mount,
        "TREE": shlex.quote(tree),
        "VERSION": shlex.quote(version),
        "SHOW_CHECKOUT": show,
        "WRITE_FILES": "\n".join(write),
        "START": shlex.quote(_START.format(agent=shlex.join(agent))),
    }
    return _filled(_INIT, values)


def disk_init_script(
    load: Sequence[str], version: str, agent: Sequence[str], checkout: str
) -> bytes:
    """Return the script /init of a machine with a disk, whose systemd starts `agent`.

    The shares `modules` and `checkout` are mounted read-only: the kernel's modules, and the folder
    `checkout` at its own path. `load` and `version` are as for `init_script`.
    """
    unit = _AGENT.format(checkout=checkout, agent=shlex.join(agent))
    return _filled(
        _DISK_INIT,
        {
            "LOAD": _insmod_list(load),
            "MODULES": MODULES_INSIDE,
            "VERSION": shlex.quote(version),
            "CHECKOUT": shlex.quote(checkout),
            "AGENT": shlex.quote(unit),
            "UNIT": AGENT_UNIT,
        },
    )


def _insmod_list(load: Sequence[str]) -> str:
    return " ".join(shlex.quote(f"{MODULES_INSIDE}/{module_name(path)}.ko") for path in load)


def _filled(script: str, values: Mapping[str, str]) -> bytes:
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    return script.encode()


def archive(files: Mapping[str, bytes]) -> bytes:
    """Return an initramfs (cpio, format newc) of executable files, keyed by absolute path.

    Kernel: Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    folders = {
        str(parent): None
        for path in files
        for parent in reversed(PurePosixPath(path).parents)
        if parent.name
    }
    entries: list[tuple[str, int, bytes]] = [
        *((folder, stat.S_IFDIR | 0o755, b"") for folder in (*folders, "/dev")),
        *((path, stat.S_IFREG | 0o755, data) for path, data in files.items()),
        ("/TRAILER!!!", 0, b""),
    ]
    return b"".join(_entries(entries))


def _entries(entries: Iterable[tuple[str, int, bytes]]) -> Iterator[bytes]:
    for number, (path, mode, data) in enumerate(entries, start=1):
        name = path.removeprefix("/").encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device twice, name's length, checksum
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % value for value in fields)
        yield _padded(header + name)
        yield _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
