"""The difference between two configurations, in the words of the file; no key is ever shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import SequenceMatcher

from esp_gw.config.conflicts import describe_selector
from esp_gw.desired import Desired, Setting, settings_of
from esp_gw.model import ANY, AUTO, Direction, Policy, Sa, Tunnel

_OF_AN_SA = ("remote_port", "esn", "replay_window", "keepalive", "liveness")
_ORIGINALS = ("local_original", "remote_original")


def differences(old: Desired, new: Desired) -> list[str]:
    """Return a line for each change: `remote_ts of office: + 10.3.0.0/24`."""
    return [*_settings(old, new), *_tunnels(old, new), *_policies(old.policies, new.policies)]


def setting_values(settings: object) -> Iterator[tuple[str, Setting, object]]:
    """Yield each setting by its place in the configuration, with its definition and value."""
    defined = settings_of(type(settings))
    # The settings of one section stand together.
    for name, setting in sorted(defined.items(), key=lambda item: item[1].section, reverse=True):
        value = getattr(settings, name)
        place = f"{setting.section}.{setting.key or name}"
        if is_dataclass(value):
            for inner, definition, each in setting_values(value):
                yield f"{place}.{inner.rpartition('.')[2]}", definition, each
        else:
            yield place, setting, value


def shown_value(value: object) -> str:
    """A value as the file has it; what is not set is `none`."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def shown_setting(place: str, value: object) -> str:
    """A setting's value as the file has it."""
    return f"{value:#x}" if place == "gateway.fwmark" else shown_value(value)


def _settings(old: Desired, new: Desired) -> Iterator[str]:
    before = {place: value for place, _, value in setting_values(old.settings)}
    for place, setting, value in setting_values(new.settings):
        if value != before[place]:
            needs = "" if setting.live else " (needs a restart)"
            was, now = (shown_setting(place, each) for each in (before[place], value))
            yield f"{place}: {was} -> {now}{needs}"


def _tunnels(old: Desired, new: Desired) -> Iterator[str]:
    before = {tunnel.name: tunnel for tunnel in old.tunnels}
    after = {tunnel.name: tunnel for tunnel in new.tunnels}
    for name in before:
        if name not in after:
            yield f"tunnel {name}: removed"
    for name, tunnel in after.items():
        if name not in before:
            ends = f"{_local(tunnel)} to {_remote(tunnel)}"
            inner = f"{shown_value(tunnel.local_ts)} - {shown_value(tunnel.remote_ts)}"
            yield f"tunnel {name}: added, {ends}, {inner}"
        else:
            yield from _tunnel(before[name], tunnel, _sas(old, name), _sas(new, name))


def _sas(desired: Desired, tunnel: str) -> dict[str, Sa]:
    return {sa.name: sa for sa in desired.sas if sa.tunnel == tunnel}


def _tunnel(
    old: Tunnel, new: Tunnel, before: Mapping[str, Sa], after: Mapping[str, Sa]
) -> Iterator[str]:
    name = new.name
    for field in ("mode", "encapsulation", "suite"):
        yield from _changed(field, name, getattr(old, field), getattr(new, field))
    yield from _changed("local", name, _local(old), _local(new))
    yield from _changed("remote", name, _remote(old), _remote(new))
    yield from _items("local_ts", name, old.local_ts, new.local_ts)
    yield from _items("remote_ts", name, old.remote_ts, new.remote_ts)
    yield from _changed("sas", name, len(old.sas) // 2, len(new.sas) // 2)
    both = [(before[each], after[each]) for each in after if each in before]
    for field in (*_OF_AN_SA, *_ORIGINALS):
        # One of the tunnel; keepalives are of the outbound SA alone.
        changed = [(getattr(a, field), getattr(b, field)) for a, b in both]
        for one, other in dict.fromkeys(pair for pair in changed if pair[0] != pair[1]):
            yield from _changed(field, name, one, other)
    if _inner(before) != _inner(after):
        yield f"protocol and ports of {name}: {_inner(before)} -> {_inner(after)}"
    for direction in Direction:
        ways = [(a, b) for a, b in both if b.direction is direction]
        if ways:
            first, then = ways[0]
            yield from _changed(f"{direction}.spi", name, f"{first.spi:#x}", f"{then.spi:#x}")
        if any(a.keymat != b.keymat for a, b in ways):
            yield f"{direction}.key of {name}: another one"


def _inner(sas: Mapping[str, Sa]) -> str:
    found = {
        (selector.protocol, selector.local_port, selector.remote_port)
        for sa in sas.values()
        for selector in sa.selectors
    }
    return "; ".join(
        " ".join(ANY if each is None else str(each) for each in one)
        for one in sorted(found, key=str)
    )


def _changed(field: str, name: str, old: object, new: object) -> Iterator[str]:
    if old != new:
        yield f"{field} of {name}: {shown_value(old)} -> {shown_value(new)}"


def _items(field: str, name: str, old: Sequence[object], new: Sequence[object]) -> Iterator[str]:
    signed = [
        *(f"- {each}" for each in old if each not in new),
        *(f"+ {each}" for each in new if each not in old),
    ]
    if signed:
        yield f"{field} of {name}: {', '.join(signed)}"


def _local(tunnel: Tunnel) -> str:
    return AUTO if tunnel.local.is_unspecified else str(tunnel.local)


def _remote(tunnel: Tunnel) -> str:
    return ANY if tunnel.learns_peer else tunnel.remote_name or str(tunnel.remote)


def _policies(old: Iterable[Policy], new: Iterable[Policy]) -> Iterator[str]:
    """Yield what was taken out of the list of policies and put into it, in its order."""
    before, after = _described(old), _described(new)
    for _, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if before[a:b] != after[c:d]:
            yield from (f"policies: - {text}" for text in before[a:b])
            yield from (f"policies: + {text}" for text in after[c:d])


def _described(policies: Iterable[Policy]) -> list[str]:
    # The policies of tunnels change with them.
    return [
        f"{policy.action} {describe_selector(selector)}"
        for policy in policies
        if policy.tunnel is None
        for selector in policy.selectors
    ]
