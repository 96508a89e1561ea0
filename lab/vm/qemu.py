"""qemu's command line and the initramfs of a machine."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.vm import initramfs
from lab.vm.image import Architecture, Image

MEMORY_MB = 1024
PROCESSORS = 2
NETDEV = "wire"
"""qemu's name of a machine's network card, for its monitor."""


@dataclass(frozen=True, slots=True)
class Tap:
    """A TAP device of a network namespace that serves as the machine's network card.

    Every frame of the machine's whole life is written to the pcap file `capture`. The device must
    exist, without virtio_net_hdr.
    """

    namespace: str
    device: str
    mac: str
    capture: Path


@dataclass(frozen=True, slots=True)
class Setup:
    """Parameters of a machine.

    `root` is the folder of the host that serves as the machine's root, `python` the interpreter in
    it that runs the agent. `checkout` is a folder mounted at its own path, for a root that isn't
    the host's. `files` are written inside before anything runs. `out` is the folder of the host
    mounted at /out. Modules in `blacklist` can't be loaded. `wire` is one end of a datagram socket
    pair that serves as the machine's network card. `options` go to the kernel's command line; init
    has those of the form NAME=value that the kernel doesn't know in its environment.

    `disk` is an ext4 image with systemd, which keeps what the machine writes. The machine then
    boots from it; `checkout` is then read-only, and `root`, `files`, `out`
    and `blacklist` have no meaning.
    """

    architecture: Architecture
    image: Image
    python: Path
    cpu: str | None = None
    root: Path = Path("/")
    checkout: Path | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    out: Path | None = None
    blacklist: tuple[str, ...] = ()
    wire: socket.socket | None = None
    tap: Tap | None = None
    disk: Path | None = None
    options: tuple[str, ...] = ()


def command_line(
    setup: Setup, folder: Path, port: int, monitor: int, wire: int | None = None
) -> list[str]:
    """Return qemu's command line; `port`, `monitor` and `wire` are descriptors that it inherits.

    `folder` holds the initramfs and receives the console output.
    """
    architecture = setup.architecture
    append = [architecture.boot, "loglevel=6", "panic=-1", "random.trust_cpu=on"]
    # However we die, the kernel kills qemu with us.
    arguments = ["setpriv", "--pdeathsig", "KILL"]
    if setup.tap is not None:
        arguments += ["nsenter", f"--net=/run/netns/{setup.tap.namespace}"]
    arguments += [
        *architecture.qemu,
        *("-nodefaults", "-display", "none", "-no-reboot", "-no-user-config"),
        *("-accel", "tcg,thread=multi"),
        *("-cpu", setup.cpu or architecture.cpu),
        *("-smp", str(PROCESSORS)),
        *("-m", str(MEMORY_MB)),
        *("-kernel", str(setup.image.kernel)),
        *("-initrd", str(folder / "initramfs")),
        *("-append", " ".join((*append, *setup.options))),
        *("-chardev", f"file,id=console,path={_escaped(folder / 'console')}"),
        *("-serial", "chardev:console"),
        *("-chardev", f"socket,id=agent,fd={port}"),
        *("-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=agent,nr=1"),
        *("-device", "virtio-rng-pci"),
        *("-chardev", f"socket,id=monitor,fd={monitor}"),
        *("-mon", "chardev=monitor,mode=control"),
    ]
    for name, path, mode in _shares(setup):
        model = "security_model=none,multidevs=remap"
        arguments += ["-fsdev", f"local,id={name},path={_escaped(path)},{model}{mode}"]
        arguments += ["-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]
    if setup.disk is not None:
        # What the machine has synced must not be lost with it, but may be lost with the host.
        drive = f"file={_escaped(setup.disk)},format=raw,if=virtio,cache=unsafe"
        arguments += ["-drive", drive]
    return [*arguments, *_network_card(setup, wire)]


def _shares(setup: Setup) -> list[tuple[str, Path, str]]:
    """Return name, folder and mode of each shared folder."""
    if setup.disk is not None:
        shares = [("modules", setup.image.tree, ",readonly=on")]
    else:
        shares = [("host", setup.root, ",readonly=on")]
    if setup.checkout is not None:
        shares.append(("checkout", setup.checkout, ",readonly=on"))
    if setup.out is not None:
        shares.append(("out", setup.out, ""))
    return shares


def _network_card(setup: Setup, wire: int | None) -> list[str]:
    # Two machines on one wire must not share qemu's default MAC address.
    mac = "52:54:00:" + secrets.token_bytes(3).hex(":")
    if wire is not None:
        netdev = f"dgram,id={NETDEV},local.type=fd,local.str={wire}"
    elif setup.tap is not None:
        ends = f"ifname={setup.tap.device},script=no,downscript=no"
        netdev, mac = f"tap,id={NETDEV},{ends},vhost=off,vnet_hdr=off", setup.tap.mac
    else:
        return []
    arguments = ["-netdev", netdev]
    arguments += ["-device", f"virtio-net-pci,netdev={NETDEV},romfile=,mac={mac}"]
    if setup.tap is not None:
        dump = f"filter-dump,id=capture,netdev={NETDEV},file={_escaped(setup.tap.capture)}"
        arguments += ["-object", dump]
    return arguments


def _escaped(path: Path) -> str:
    # A comma ends an option's value; a doubled comma stands for one.
    return str(path).replace(",", ",,")


def make_initramfs(setup: Setup) -> bytes:
    """Return the machine's initramfs."""
    image = setup.image
    dep, builtin = ((image.tree / f"modules.{name}").read_text() for name in ("dep", "builtin"))
    wanted = initramfs.MODULES if setup.disk is None else initramfs.DISK_MODULES
    load = initramfs.load_order(dep, builtin, wanted)
    files = {"/init": _init_script(setup, load), "/bin/busybox": image.busybox()}
    for path in load:
        files[f"{initramfs.MODULES_INSIDE}/{initramfs.module_name(path)}.ko"] = image.module(path)
    return initramfs.archive(files)


def _init_script(setup: Setup, load: Sequence[str]) -> bytes:
    image = setup.image
    checkout = str(setup.checkout) if setup.checkout else None
    agent = (str(setup.python), "-m", "lab.vm.agent", initramfs.PORT)
    if setup.disk is not None:
        return initramfs.disk_init_script(load, image.version, agent, str(checkout))
    written = {**setup.files, initramfs.BLACKLIST: initramfs.blacklist_file(setup.blacklist)}
    return initramfs.init_script(
        load, image.version, str(image.tree), agent, written, checkout, setup.out is not None
    )
