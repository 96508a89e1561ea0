"""`esp-gw init` and `esp-gw keygen`: generate configurations and keys."""

from __future__ import annotations

import os
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path

import click

from esp_gw.cli.options import (
    ADDRESS,
    DIRECTORY,
    ENCAPSULATION,
    FILE,
    MODE,
    OUTER_ADDRESS,
    PREFIX,
    SA_COUNT,
    SUITE,
)
from esp_gw.cli.options import local_address as local_or_auto
from esp_gw.cli.output import refuse_open_stdout, word
from esp_gw.errors import printable
from esp_gw.model import AUTO, DEFAULT_SUITE, NO_AES, SUITES, Encapsulation, Mode

suite_option = click.option(
    "--suite",
    type=SUITE,
    default=DEFAULT_SUITE.name,
    show_default=True,
    metavar="NAME",
    help=f"One of {', '.join(SUITES)}.",
)


@click.command()
@click.option(
    "--local",
    type=local_or_auto,
    required=True,
    metavar="IP",
    help="A's outer address; 'auto' on A itself, where it changes.",
)
@click.option(
    "--remote", type=OUTER_ADDRESS, required=True, metavar="IP", help="B's outer address."
)
@click.option(
    "--local-net", type=PREFIX, multiple=True, metavar="NET", help="Prefix behind A. Repeatable."
)
@click.option(
    "--remote-net", type=PREFIX, multiple=True, metavar="NET", help="Prefix behind B. Repeatable."
)
@click.option("--local-address", type=ADDRESS, metavar="IP", help="Inner address of A itself.")
@click.option("--remote-address", type=ADDRESS, metavar="IP", help="Inner address of B itself.")
@click.option("--name-a", default="pi-a", show_default=True, metavar="NAME")
@click.option("--name-b", default="pi-b", show_default=True, metavar="NAME")
@click.option(
    "--mode",
    type=MODE,
    default="tunnel",
    show_default=True,
)
@click.option(
    "--encapsulation",
    type=ENCAPSULATION,
    default="udp",
    show_default=True,
)
@click.option(
    "--suite",
    type=SUITE,
    default=None,
    show_default=DEFAULT_SUITE.name,
    metavar="NAME",
    help=f"One of {', '.join(SUITES)}.",
)
@click.option(
    "--same-boards",
    is_flag=True,
    help="A and B are machines like this one: measure which suite is fastest.",
)
@click.option(
    "--sas",
    type=SA_COUNT,
    default=None,
    show_default="this machine's processors, 2 to 4",
    metavar="N",
    help="SAs of the tunnel in each direction, each with its own key; 1 if B allows only one.",
)
@click.option(
    "--ike",
    is_flag=True,
    help="IKE makes the keys: write swanctl.conf for strongSwan's charon, too, and no keys.",
)
@click.option(
    "--certificates",
    is_flag=True,
    help="With --ike: a small CA and a certificate for each end, instead of a shared secret.",
)
@click.option(
    "--force", is_flag=True, help="Go on where this machine, A, would be cut off from its network."
)
@click.option(
    "--out",
    type=DIRECTORY,
    default=Path(),
    show_default="here",
    help="Parent directory for the folders of A and B.",
)
def init(
    local: str,
    remote: str,
    local_net: tuple[str, ...],
    remote_net: tuple[str, ...],
    local_address: str | None,
    remote_address: str | None,
    name_a: str,
    name_b: str,
    mode: str,
    encapsulation: str,
    suite: str | None,
    same_boards: bool,
    sas: int | None,
    ike: bool,
    certificates: bool,
    force: bool,
    out: Path,
) -> None:
    """Write matching configurations and keys for two gateways, A and B."""
    from esp_gw.cli.here import (  # noqa: PLC0415 - imports netlink, which is slow
        judge,
        look_if_home,
        outer_address,
    )
    from esp_gw.config.provision import make_pair  # noqa: PLC0415 - pydantic is slow to import

    if mode == Mode.TUNNEL and not (local_net and remote_net):
        raise click.UsageError(
            "tunnel mode joins the networks behind A and B: give --local-net and --remote-net"
        )
    if ike:
        _refuse_with_ike(sas, same_boards)
    elif certificates:
        raise click.UsageError("--certificates needs --ike: manual keys have none")
    chosen, why = _suite(suite, same_boards)
    count = _default_sas() if sas is None else sas
    peer = ip_address(remote)
    outer = outer_address(peer) if local == AUTO else ip_address(local)
    here = look_if_home(outer)
    own = frozenset() if here is None else here.host.addresses
    routers = frozenset() if here is None else here.host.routers
    written = AUTO if local == AUTO else None
    settings = {"allow_cut_off": True} if force else {}
    inner = [None if text is None else ip_address(text) for text in (local_address, remote_address)]
    nets = [tuple(map(ip_network, texts)) for texts in (local_net, remote_net)]
    refuse = None if here is None else partial(judge, here, force)
    if ike:
        from esp_gw.cli.provision_ike import write_ike_pair  # noqa: PLC0415 - pydantic is slow
        from esp_gw.config.ike import Authentication, IkeTerms  # noqa: PLC0415 - likewise
        from esp_gw.config.offer import End  # noqa: PLC0415 - likewise

        known = Authentication.CERTIFICATES if certificates else Authentication.PSK
        write_ike_pair(
            out,
            End(name_a, outer, nets[0], inner[0], settings, own, routers, written),
            End(name_b, peer, nets[1], inner[1]),
            IkeTerms(Mode(mode), Encapsulation(encapsulation), SUITES[chosen], known),
            refuse,
        )
        return
    pair = make_pair(
        out,
        local=outer,
        remote=peer,
        local_nets=nets[0],
        remote_nets=nets[1],
        names=(name_a, name_b),
        mode=Mode(mode),
        encapsulation=Encapsulation(encapsulation),
        suite=SUITES[chosen],
        sas=count,
        local_address=inner[0],
        remote_address=inner[1],
        local_settings=settings,
        own=own,
        routers=routers,
        written_local=written,
        judge=refuse,
    )
    folders = (pair.local.parent, pair.remote.parent)
    for folder, file in zip(folders, (pair.local, pair.remote), strict=True):
        click.echo(printable(f"wrote {file} and the keys in {folder / 'keys'}"))
    click.echo(f"suite: {chosen}. {why}")
    if sas is None:
        click.echo(f"sas: {count}. The default; a peer that allows one SA each way needs --sas 1.")
    for folder, host in zip(folders, (outer, peer), strict=True):
        click.echo(f"\nCopy the folder {word(folder)} to {host} and run there:")
        click.echo(f"  sudo cp -r {word(folder.name)}/. /etc/esp-gw")
        click.echo("  sudo chown -R esp-gw: /etc/esp-gw")
        click.echo("  sudo esp-gw ledger create")
        click.echo("  sudo systemctl enable --now esp-gw")
    click.echo("\nThe folders hold the keys: delete all copies outside /etc/esp-gw afterwards.")


@click.command()
@suite_option
@click.option(
    "--sas",
    type=SA_COUNT,
    default=1,
    show_default=True,
    metavar="N",
    help="SAs of the tunnel in each direction, each with its own key.",
)
@click.option(
    "--out",
    type=FILE,
    required=True,
    metavar="FILE|-",
    help="The key file to create, mode 0600; - is stdout, which must be a pipe.",
)
def keygen(suite: str, sas: int, out: Path) -> None:
    """Write a key file with one or more fresh random keys and salts.

    They are never shown: stdout has to be a pipe, as into 'esp-gw sa add --key-file -'.
    """
    from esp_gw.config.keyfile import (  # noqa: PLC0415 - only needed here
        format_keymat,
        generate,
        write_key_file,
    )

    to_stdout = str(out) == "-"
    if to_stdout:
        refuse_open_stdout("name a file with --out, or pipe into a command that reads the key")
    keymats = [generate(SUITES[suite]) for _ in range(sas)]
    if to_stdout:
        for keymat in keymats:
            click.echo(format_keymat(keymat))
        return
    write_key_file(out, keymats, f"Key and salt for {suite}.")
    what = "a key" if sas == 1 else f"{sas} keys"
    click.echo(printable(f"wrote {out}: {what} for {suite}"))


def _default_sas() -> int:
    """Return a lane for sparse flows, and one for bulk on each further processor up to four."""
    return min(max(len(os.sched_getaffinity(0)), 2), 4)


def _suite(wanted: str | None, same_boards: bool) -> tuple[str, str]:
    """Return the suite for both ends, and the reason for it."""
    from esp_gw.crypto.processor import aes_path  # noqa: PLC0415 - only needed here

    if wanted is not None:
        return wanted, "As requested."
    if same_boards:
        from esp_gw.crypto.measure import THOROUGH, Sealer  # noqa: PLC0415 - only if requested
        from esp_gw.crypto.recommend import CHOICE, reason, recommended  # noqa: PLC0415
        from esp_gw.engine.choose import is_native  # noqa: PLC0415

        figures = Sealer(is_native("auto")).figures(CHOICE, THOROUGH)
        return recommended(figures), reason(figures, aes_path())
    if aes_path() == NO_AES:
        return DEFAULT_SUITE.name, (
            "The default. This processor has no AES instructions: if A and B are machines like "
            "this one, delete the folders and add --same-boards, which measures the suites."
        )
    return DEFAULT_SUITE.name, "The default."


def _refuse_with_ike(sas: int | None, same_boards: bool) -> None:
    """Raise a usage error for an option that has no meaning where IKE makes the keys."""
    if sas is not None:
        raise click.UsageError("--sas has no meaning with --ike, which makes one pair of SAs")
    if same_boards:
        raise click.UsageError(
            "--same-boards has no meaning with --ike: the ends agree on a suite of --suite"
        )
