"""The records of what the owner's session holds, in the file beside the control socket."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from esp_gw.daemon.children import ChildPolicy, ChildSa, parse
from esp_gw.daemon.held import Held, HeldSa, Key, Made, outbound_of
from esp_gw.errors import ControlError, EspGwError
from esp_gw.ledger.ephemeral import EPHEMERAL_FOLDER, EPHEMERAL_NAME, Records, read_records
from esp_gw.ledger.thread import EphemeralThread
from esp_gw.logs import log
from esp_gw.model import KeyMaterial, Policy

_SA, _POLICY = "sa", "policy"


def held_path(control_socket: str | Path) -> Path:
    """Return the path of the file that belongs to a control socket."""
    return Path(control_socket).parent / EPHEMERAL_FOLDER / EPHEMERAL_NAME


async def load_held(ledger: EphemeralThread) -> Held:
    """Return what the file holds; a record that can't be used is left out, with a line in the log.

    Raises LedgerError if the file is there and can't be opened now: a gateway that began without it
    would open what it protects, and use its SAs again at a later start.
    """
    found = {name: _sa(text) for name, text in await ledger.records(_SA)}
    texts = [text for _, text in await ledger.records(_POLICY)]
    if useless := [(_SA, name) for name, sa in found.items() if sa is None]:
        # Nobody else would: a record that is not held is not flushed, and has a key.
        with contextlib.suppress(EspGwError):
            await ledger.write(Records({}, useless))
    there = {held.key: held for held in found.values() if held is not None}
    policies = {}
    for policy in _policies(texts):
        key = outbound_of(policy)
        missing = key is not None and (key not in there or there[key].expired)
        policies[policy.id] = policy.model_copy(update={"sa": None}) if missing else policy
    return Held(there, policies)


def last_policies(control_socket: Path) -> tuple[Policy, ...]:
    """Return the policies that a gateway which has ended left, in order, without SAs.

    Raises LedgerError if the file can't be read.
    """
    policies = _policies(read_records(held_path(control_socket), _POLICY))
    return Made().policies(policy.model_copy(update={"sa": None}) for policy in policies)


def records_of(before: Held, after: Held, retired: Sequence[KeyMaterial]) -> Records:
    """Return the changes of the records that lead from one value to another."""
    put = {
        (_SA, _name(key)): json.dumps({**held.entry.revealed(), "expired": held.expired})
        for key, held in after.sas.items()
        if before.sas.get(key) is not held
    }
    put |= {
        (_POLICY, name): json.dumps(policy.plain())
        for name, policy in after.policies.items()
        if before.policies.get(name) is not policy
    }
    removed = [(_SA, _name(key)) for key in before.sas.keys() - after.sas.keys()]
    removed += [(_POLICY, name) for name in before.policies.keys() - after.policies.keys()]
    return Records(put, removed, retired)


def _name(key: Key) -> str:
    number = f" {key.number}" if key.number else ""
    return f"{key.direction} {key.spi}{number}"


def _sa(text: str) -> HeldSa | None:
    try:
        fields = json.loads(text)
        expired = bool(fields.pop("expired"))
        return HeldSa.of(parse(ChildSa, fields), expired=expired)
    except (ValueError, KeyError, AttributeError, ControlError):
        log.error("an SA of IKE's children can't be read, and is left out")
        return None


def _policies(texts: Sequence[str]) -> list[ChildPolicy]:
    found = []
    for text in texts:
        try:
            found.append(parse(ChildPolicy, json.loads(text)))
        except (ValueError, ControlError):
            log.error("a policy of IKE's children can't be read, and is left out")
    return found
