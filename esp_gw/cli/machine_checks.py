"""The checks of `esp-gw doctor` on the machine: what `esp-gw tune` looks at, and its conflicts.

A machine that has none of it, such as a container, has few of these findings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from esp_gw.cli import output
from esp_gw.cli.finding import Finding, State
from esp_gw.cli.outgoing import around
from esp_gw.desired import Desired
from esp_gw.errors import EspGwError, NetworkError
from esp_gw.model import Action
from esp_gw.network.xfrm_policies import KernelPolicy, kernel_policies
from esp_gw.tune.advice import CARD, TOPICS, Setting, advise
from esp_gw.tune.hints import BUFFERS, HOUR, WRITES, hints, written_a_day
from esp_gw.tune.look import look
from esp_gw.tune.machine import Card, Machine
from esp_gw.tune.places import ROOT, Places

_TUNE = "run 'sudo esp-gw tune'"
_SEGMENTS = "tx-udp-segmentation"
_NAMED = 3


def machine_findings(desired: Desired | None, gateway: int | None) -> Iterator[Finding]:
    """Yield the findings on cards, processors, buffers, storage and XFRM policies.

    `gateway` is the process id of the running one. Nothing is changed.
    """
    places = Places(ROOT)
    try:
        found = around(desired, ROOT)
        machine = look(found.cards, places, ROOT)
    except EspGwError as error:
        yield Finding(State.WARNING, CARD, str(error))
        return
    finally:
        places.close()
    for card in machine.cards:
        yield Finding(State.OK, CARD, _described(card))
    settings = advise(machine, found.use)
    for topic in TOPICS:
        yield from _settings(topic, [each for each in settings if each.topic == topic])
    advice = hints(machine, found.use)
    for hint in advice:
        yield Finding(State.WARNING, hint.topic, hint.found, hint.todo)
    topics = {hint.topic for hint in advice}
    if BUFFERS not in topics:
        yield Finding(State.OK, BUFFERS, _buffers(machine))
    if WRITES not in topics:
        yield from _writes(machine, gateway)
    if desired is not None:
        yield from _policies(desired)


def _described(card: Card) -> str:
    driver = f"{card.name}, driver {card.driver}" if card.driver else card.name
    if card.active is None:
        return f"{driver}: its features are unknown"
    cuts = "cuts batches itself" if _SEGMENTS in card.active else "the kernel cuts batches for it"
    merged = "merges what it receives" if "rx-gro" in card.active else "merges nothing"
    return f"{driver}: {cuts}, {merged}"


def _settings(topic: str, settings: list[Setting]) -> Iterator[Finding]:
    wrong = [each for each in settings if not each.is_right]
    if wrong:
        texts = [f"{each.place} {each.now}, better {each.better}" for each in wrong]
        yield Finding(State.WARNING, topic, _listed(texts), _TUNE)
    elif settings and topic != CARD:
        texts = [f"{each.place} {each.now}" for each in settings]
        yield Finding(State.OK, topic, _listed(texts))


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return f"{'; '.join(texts[:_NAMED])}{more}"


def _buffers(machine: Machine) -> str:
    lost = output.counted(machine.datagrams_lost, "datagram")
    return f"4 MiB for each outer socket, whatever net.core.rmem_max is; {lost} lost since the boot"


def _writes(machine: Machine, gateway: int | None) -> Iterator[Finding]:
    ours = _written_by(gateway)
    for each in machine.storage:
        daily = written_a_day(machine, each.written)
        told = (
            f"{output.size(daily)} a day"
            if daily is not None
            else f"{output.size(each.written)} since the boot, less than {HOUR // 3600} h ago"
        )
        told += "" if ours is None else f"; {output.size(ours)} by the gateway since its start"
        yield Finding(State.OK, WRITES, f"{each.name}: {told}")


def _written_by(process: int | None) -> int | None:
    """Return the bytes that a process had written to storage (proc(5)); None if unknown."""
    if process is None:
        return None
    try:
        lines = Path(f"/proc/{process}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))
    except (OSError, ValueError, StopIteration):
        return None


def _policies(desired: Desired) -> Iterator[Finding]:
    try:
        theirs = kernel_policies()
    except NetworkError:  # _capabilities says what to do
        return
    taken: dict[KernelPolicy, str] = {}
    for policy in theirs:
        for each in desired.policies:
            if each.action is Action.PROTECT and any(
                policy.takes(selector.local, selector.remote) for selector in each.selectors
            ):
                taken.setdefault(policy, each.name)
    for policy, name in list(taken.items())[:_NAMED]:
        does = "drops" if policy.drops else "protects"
        found = (
            f"the kernel itself {does} what goes from {policy.source} to {policy.destination} "
            f"({policy.direction}), before the policy {name} of the gateway"
        )
        todo = "see 'ip xfrm policy'; 'esp-gw sa import' takes such a gateway over"
        yield Finding(State.WARNING, "xfrm", found, todo)
    if theirs and not taken:
        found = f"policies of the kernel itself: {len(theirs)}, none of the gateway's prefixes"
        yield Finding(State.OK, "xfrm", found)
