"""The gateway's nftables table in the kernel, by way of the program nft.

The kernel's listing of the table right after a replacement is the reference for later checks: any
difference, a flush by another program included, means that the table is no longer in place.

Sources: libnftables-json(5), linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

from esp_gw.errors import NetworkError, printable
from esp_gw.network.firewall import UNKNOWN, Firewall, FirewallDrop, firewall_name
from esp_gw.network.monitor import drain, filter_monitor
from esp_gw.network.ruleset import FAMILY, Json, difference, differs_by, removal, replacement

PROGRAM = "nft"
SEARCH_PATH = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"
"""Folders of system programs: a user's PATH may lack them."""
_TIMEOUT = 20.0
"""Seconds for one run of nft; the kernel makes it wait for other programs' transactions."""


class NftTable:
    """The table of the gateway with this routing table number, and those of its `former` ones.

    All methods block for the time of a run of nft, some hundredths of a second.
    """

    def __init__(self, table: int, former: Iterable[int]) -> None:
        self._name = firewall_name(table)
        self._former = tuple(firewall_name(each) for each in former if each != table)
        self._monitor = filter_monitor()
        self._dirty = True
        self._in_place: Firewall | None = None
        self._reference: Json | None = None
        self.unseen: str | None = None
        """The reason that the filter in place could not be looked at, or None."""

    @property
    def monitors(self) -> list[socket.socket]:
        """The socket that becomes readable when any table changes; none without nf_tables."""
        return [] if self._monitor is None else [self._monitor]

    def drain(self) -> bool:
        """Discard the notifications and return True if there was one.

        The next `observe` asks the kernel. Without nf_tables there are none, and it always asks.
        """
        notified = self._monitor is not None and drain(self._monitor)
        if notified or self._monitor is None:
            self._dirty = True
        return notified

    def close(self) -> None:
        """Close the monitor."""
        if self._monitor is not None:
            self._monitor.close()

    def observe(self) -> Firewall | None:
        """Return the filter in place: the one last applied, `UNKNOWN`, or None if there is none.

        A table of an earlier run is unknown, as is one that another program changed. While nft
        fails, the one in place is taken to be there still.
        """
        self.drain()
        if self._dirty:
            try:
                listing = self._listing()
            except NetworkError as error:
                self.unseen = None if self._in_place is None else str(error)
                return self._in_place
            self._dirty, self.unseen = False, None
            if listing is None:
                self._in_place = None
            elif listing != self._reference:
                self._in_place = UNKNOWN
        return self._in_place

    def apply(self, firewall: Firewall) -> None:
        """Make the table hold exactly this, in one transaction. Raises NetworkError."""
        there, reference = self._in_place, self._reference
        # After a refusal the kernel is asked what is there.
        self._dirty, self._reference = True, None
        listing = None
        if there is not None and reference is not None:
            listing = self._changed_by_difference(there, firewall, reference)
        if listing is None:
            self._change(replacement(firewall, self._former))
            listing = self._listing()
        self._in_place, self._reference = firewall, listing

    def _changed_by_difference(
        self, there: Firewall, firewall: Firewall, reference: Json
    ) -> Json | None:
        """Add or remove a few addresses; return the listing, None where all is to be replaced.

        That is so for other differences, and if another program has changed the table meanwhile.
        """
        transaction = difference(there, firewall)
        if transaction is None:
            return None
        try:
            self._change(transaction)
        except NetworkError:
            return None
        listing = self._listing()
        if listing is None or not differs_by(reference, listing, transaction):
            return None
        return listing

    def remove(self) -> None:
        """Delete the table; one that doesn't exist is no error. Raises NetworkError."""
        for name in (self._name, *self._former):
            self._change(removal(name))
        self._in_place = None

    def drops(self) -> dict[str, int]:
        """Return the packets that the filter dropped, by reason, without those that are 0."""
        try:
            reply = _run("-j", "list", "counters", "table", FAMILY, self._name)
        except NetworkError:
            return {}
        counters = [entry["counter"] for entry in reply if "counter" in entry]
        counts = {each["name"]: int(each["packets"]) for each in counters}
        return {str(reason): counts[reason] for reason in FirewallDrop if counts.get(reason)}

    def _change(self, transaction: Json) -> None:
        # Not '-', which nft takes for /dev/stdin: a minimal /dev has no such link.
        _run("-j", "-f", "/proc/self/fd/0", standard_input=json.dumps(transaction))

    def _listing(self) -> Json | None:
        """Return the table as the kernel has it, without handles and counts; None if it's gone.

        Raises NetworkError if nft fails, which says in words alone that there is no such table.
        """
        try:
            reply = _run("-j", "list", "table", FAMILY, self._name)
        except NetworkError:
            tables = [each["table"] for each in _run("-j", "list", "tables") if "table" in each]
            if any((each["family"], each["name"]) == (FAMILY, self._name) for each in tables):
                raise
            return None
        return {"nftables": [_without_counts(entry) for entry in reply]}


def list_ruleset() -> Sequence[Any]:
    """Return the entries of all tables (libnftables-json(5)). Raises NetworkError."""
    return _run("-j", "list", "ruleset")


def firewall_fault() -> str | None:
    """Return the reason that this machine can have no packet filter, or None."""
    try:
        _run("-j", "list", "tables")
    except NetworkError as error:
        return str(error)
    return None


def _without_counts(entry: Json) -> Json:
    kind, body = next(iter(entry.items()))
    if kind == "metainfo":
        return {}
    dropped = ("handle", "packets", "bytes") if kind == "counter" else ("handle",)
    return {kind: {key: value for key, value in body.items() if key not in dropped}}


def _run(*arguments: str, standard_input: str | None = None) -> Sequence[Any]:
    """Run nft and return the entries of its JSON reply. Raises NetworkError."""
    program = shutil.which(PROGRAM) or shutil.which(PROGRAM, path=SEARCH_PATH)
    if program is None:
        raise NetworkError(
            "the program nft is missing, so the packet filter is not in place",
            where="gateway.firewall",
            hint="install the package nftables",
        )
    try:
        done = subprocess.run(
            [program, *arguments],
            input=standard_input,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"nft failed: {error}", where="gateway.firewall") from None
    if done.returncode != 0:
        reason = next(
            (line for line in done.stderr.splitlines() if line.strip()), "no reason given"
        )
        raise NetworkError(
            f"nft was refused: {printable(reason.strip())}",
            where="gateway.firewall",
            hint="the kernel needs nf_tables (CONFIG_NF_TABLES_INET) and nft_fib_inet",
        )
    try:
        entries = json.loads(done.stdout)["nftables"] if done.stdout.strip() else []
    except (ValueError, KeyError, TypeError):
        raise NetworkError("nft gave an unreadable answer", where="gateway.firewall") from None
    return list(entries)
