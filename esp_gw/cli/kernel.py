"""`esp-gw sa import`: the kernel's SAs and policies come here."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from esp_gw.cli import output
from esp_gw.cli.options import Daemon, json_option
from esp_gw.control.protocol import MAX_REQUEST, encode_request
from esp_gw.errors import EspGwError

MAX_INPUT = 16 << 20
STDIN = "stdin"


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE|-...")
@click.option("--check", is_flag=True, help="Only say whether all of it can be imported.")
@json_option
@click.pass_obj
def import_(daemon: Daemon, files: tuple[str, ...], check: bool, as_json: bool) -> None:
    """Take over SAs and policies of the kernel.

    Each FILE holds what 'ip xfrm state' or 'ip xfrm policy' printed as root, or both; - is stdin.
    All of it is added, as with 'sa add' and 'policy add', or nothing.
    """
    from esp_gw.store import plain, revealed  # noqa: PLC0415 - pydantic is slow to import
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
        click.echo(output.printable(f"note: {note}"))
    for kind, entries in (("SA", found.sas), ("policy", found.policies)):
        for entry in entries:
            click.echo(f"{'would import' if check else 'imported'} {kind} {entry.name}")


def _name(file: str) -> str:
    return STDIN if file == "-" else output.printable(file)


def _read(file: str) -> str:
    """The text of a file or of stdin. Raises EspGwError, never with the text."""
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
    # iproute2 writes ASCII; whatever else is there is not understood, and said to be so.
    return content.decode("ascii", "replace")
