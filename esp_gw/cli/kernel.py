"""`esp-gw sa import` and `sa export`: SAs and policies from and to the kernel's IPsec."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from esp_gw.cli import output
from esp_gw.cli.options import ADDRESS, Daemon, config_option, json_option
from esp_gw.control.protocol import MAX_REQUEST, encode_request
from esp_gw.desired import Desired
from esp_gw.errors import ControlError, EspGwError, printable
from esp_gw.model import Direction, Encapsulation

MAX_INPUT = 16 << 20
STDIN = "stdin"


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE|-...")
@click.option("--check", is_flag=True, help="Only check that everything can be imported.")
@json_option
@click.pass_obj
def import_(daemon: Daemon, files: tuple[str, ...], check: bool, as_json: bool) -> None:
    """Take over SAs and policies of the kernel.

    Each FILE holds the output of 'ip xfrm state' or 'ip xfrm policy' as root, or both; - is stdin.
    Everything is added, as with 'sa add' and 'policy add', or nothing.
    """
    from esp_gw.config.added import plain, revealed  # noqa: PLC0415 - pydantic is slow to import
    from esp_gw.xfrm.parser import join, parse  # noqa: PLC0415
    from esp_gw.xfrm.takeover import take_over  # noqa: PLC0415

    found = take_over(join([parse(_read(file), _name(file)) for file in files]))
    parameters: dict[str, object] = {
        "sas": [revealed(entry) for entry in found.sas],
        "policies": [plain(entry) for entry in found.policies],
        "port": found.port,
    }
    method = "CheckImport" if check else "ImportSas"
    if len(encode_request(method, parameters)) > MAX_REQUEST:
        raise EspGwError(
            f"{output.counted(len(found.sas), 'SA')} are too many for one import",
            hint="import one peer after the other",
        )
    reply = daemon.call(method, **parameters)
    if as_json:
        output.print_json({**reply, "notes": list(found.notes)})
        return
    for note in found.notes:
        click.echo(printable(f"note: {note}"))
    for kind, entries in (("SA", found.sas), ("policy", found.policies)):
        for entry in entries:
            click.echo(f"{'would import' if check else 'imported'} {kind} {entry.name}")


@click.command()
@click.option("--format", "form", type=click.Choice(["iproute2"]), default="iproute2")
@click.option(
    "--output",
    "target",
    required=True,
    metavar="FILE|-",
    help="The file to create, mode 0600; - is stdout, which must be a pipe.",
)
@click.option(
    "--remote", type=ADDRESS, metavar="IP", help="The other end; required if there are several."
)
@config_option
@click.pass_obj
def export(daemon: Daemon, form: str, target: str, remote: str | None, config: Path) -> None:
    """Write the other end's SAs and policies as lines of 'ip -batch', with the keys.

    They are read from the configuration, its key files, and the SAs of 'sa add' and 'sa import',
    so this needs root. Sequence numbers come from the daemon, if it is running.
    """
    from esp_gw.config.added import STORE_NAME, Store, merge  # noqa: PLC0415
    from esp_gw.config.load import load_config  # noqa: PLC0415 - pydantic is slow to import
    from esp_gw.xfrm.commands import batch  # noqa: PLC0415

    if target == "-":
        output.refuse_open_stdout(
            "name a file with --output, or pipe into 'ssh root@peer ip -batch -'"
        )
    wanted = load_config(config)
    wanted = merge(wanted, Store(Path(wanted.settings.state_dir) / STORE_NAME).load())
    peers = sorted({str(sa.remote) for sa in wanted.sas if not sa.remote.is_unspecified})
    if remote is None and len(peers) == 1:
        (remote,) = peers
    if remote not in peers:
        raise EspGwError(
            f"there is no SA with {remote}" if remote else "the other end is not one host",
            hint=_hint(wanted, peers),
        )
    sas = [sa for sa in wanted.sas if str(sa.remote) == remote]
    seqs = _seqs(daemon.of(wanted.settings.control_socket))
    text = batch(sas, wanted.policies, seqs, wanted.settings.port)
    if any(sa.encapsulation is Encapsulation.UDP for sa in sas):
        _note("a program at the other end must hold the UDP port with UDP_ENCAP, like IKE daemons")
    _write(target, text)


def _hint(wanted: Desired, peers: Sequence[str]) -> str:
    if peers or not wanted.sas:
        return f"choose it with --remote: {', '.join(peers) or 'there are no SAs'}"
    return "write its address as 'remote': the kernel needs one, and has none of a name or 'any'"


def _seqs(daemon: Daemon) -> dict[str, int]:
    """Return each SA's last number sent or highest accepted; none if the daemon isn't running."""
    try:
        entries = daemon.call("ListSas")["sas"]
    except ControlError:
        raise
    except EspGwError as error:
        _note(f"the sequence numbers begin at 1, as for unused keys: {error.what}")
        return {}
    return {
        entry["name"]: entry["seq"] - (entry["direction"] == Direction.OUTBOUND)
        for entry in entries
    }


def _note(text: str) -> None:
    click.echo(printable(f"note: {text}"), err=True)


def _write(target: str, text: str) -> None:
    if target == "-":
        click.echo(text, nl=False)
        return
    from esp_gw.files import write_new  # noqa: PLC0415

    try:
        write_new(Path(target), text.encode())
    except FileExistsError:
        raise EspGwError(
            "exists already and is not overwritten",
            where=printable(target),
            hint="choose another name, or move the old file away",
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is not a usable file name"
        raise EspGwError(reason, where=printable(target)) from None
    click.echo(printable(f"wrote {target}; run at the other end: ip -batch {target}"))


def _name(file: str) -> str:
    return STDIN if file == "-" else printable(file)


def _read(file: str) -> str:
    """Return the text of a file or of stdin. Raises EspGwError, which never quotes the text."""
    try:
        if file == "-":
            content = sys.stdin.buffer.read(MAX_INPUT + 1)
        else:
            with Path(file).open("rb") as stream:
                content = stream.read(MAX_INPUT + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is not a usable file name"
        raise EspGwError(reason, where=_name(file)) from None
    if len(content) > MAX_INPUT:
        raise EspGwError(f"is larger than {MAX_INPUT} bytes", where=_name(file))
    # iproute2 writes ASCII; the parser reports anything else as not understood.
    return content.decode("ascii", "replace")
