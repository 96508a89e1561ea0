"""Conversion of the kernel's states and policies to SAs and policies of esp-gw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import NoReturn, TypeVar

from esp_gw.config.added import PolicyEntry, SaEntry, parse_policy_entry, parse_sa_entry
from esp_gw.config.conflicts import covers, find_conflicts, overlap
from esp_gw.config.keyfile import format_keymat
from esp_gw.errors import ControlError, EspGwError
from esp_gw.model import (
    DEFAULT_REPLAY_WINDOW,
    MAX_REPLAY_WINDOW,
    MIN_REPLAY_WINDOW,
    Action,
    Direction,
    Encapsulation,
    Mode,
    PortRange,
    Selector,
)
from esp_gw.xfrm.records import Dump, PolicyDirection, Template, XfrmPolicy, XfrmSelector, XfrmState

MARGIN = 2**20
"""Sequence numbers to skip, which the kernel may use after its states were printed: 12 s of full
packets at 1 Gbit/s."""
LAST_SEQ = 2**32 - 1
"""The highest number that an SA begun by the kernel may reach: see docs/explanation/safety.md."""

Entry = TypeVar("Entry", SaEntry, PolicyEntry)


@dataclass(frozen=True, slots=True)
class Takeover:
    """SAs and policies to add, in SPD order; `port` is the local UDP port of the SAs, if any.

    `notes` are remarks for the user.
    """

    sas: tuple[SaEntry, ...]
    policies: tuple[PolicyEntry, ...]
    port: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Use:
    """One SA with the policies that use it."""

    name: str
    state: XfrmState
    direction: Direction
    policies: tuple[XfrmPolicy, ...]


def take_over(dump: Dump) -> Takeover:
    """Convert all states and policies. Raises EspGwError with the line of the first that can't."""
    users = _users(dump)
    uses: list[_Use] = []
    for state in dump.states:
        uses.append(_use(state, users.get(state.where, []), [use.name for use in uses]))
    if not uses:
        raise EspGwError("there is no SA to import", hint="run 'ip xfrm state' as root")
    sas = [_sa(use, uses) for use in uses]
    places = {use.name: use.state.where for use in uses}
    policies = []
    for policy in _in_order(dump):
        sender = next((use for use in uses if policy in use.policies), None)
        entry = _policy(policy, sender, places)
        places[entry.name] = policy.where
        policies.append(entry)
    for conflict in find_conflicts(
        [entry.to_sa() for entry in sas], [entry.to_policy() for entry in policies]
    ):
        raise EspGwError(conflict.message, where=places[conflict.names[-1]])
    return Takeover(tuple(sas), tuple(policies), _port(uses), tuple(_notes(uses)))


def _users(dump: Dump) -> dict[str, list[XfrmPolicy]]:
    """The policies that use each state, keyed by the place of the state."""
    users: dict[str, list[XfrmPolicy]] = {}
    for policy in dump.policies:
        if policy.template is None:
            if policy.block and policy.direction is not PolicyDirection.OUT:
                _refuse(
                    policy,
                    f"a policy 'dir {policy.direction} action block': not supported by esp-gw",
                    "make it a firewall rule, and leave it out",
                )
            continue
        if policy.block:
            _refuse(policy, "a policy with a template that blocks: not supported by esp-gw")
        found = [state for state in dump.states if _fits(state, policy, policy.template)]
        if not found:
            _refuse(
                policy,
                "no state fits the policy's template",
                "pass the output of 'ip xfrm state' as well, with all states",
            )
        if policy.direction is PolicyDirection.OUT and len(found) > 1:
            _refuse(
                policy,
                f"{len(found)} states fit the policy's template ({found[0].where}, "
                f"{found[1].where}), so it is ambiguous which one sends",
                "delete the old one with 'ip xfrm state delete'",
            )
        for state in found:
            users.setdefault(state.where, []).append(policy)
    return users


def _fits(state: XfrmState, policy: XfrmPolicy, template: Template) -> bool:
    """True if the kernel would use the state for the template (xfrm_state_find, xfrm_state_ok)."""
    out = policy.direction is PolicyDirection.OUT
    ends = [template.src, template.dst]
    if template.mode is Mode.TRANSPORT:
        # An unspecified end stands for the address of the packet.
        inner = (policy.selector.src, policy.selector.dst)
        ends = [
            net.network_address if end.is_unspecified else end
            for end, net in zip(ends, inner, strict=True)
        ]
    return (
        [state.src, state.dst] == ends
        and state.mode is template.mode
        and template.spi in (0, state.spi)
        and (state.reqid == template.reqid or (not out and template.reqid == 0))
    )


def _use(state: XfrmState, policies: Sequence[XfrmPolicy], taken: Sequence[str]) -> _Use:
    directions = {
        Direction.OUTBOUND if policy.direction is PolicyDirection.OUT else Direction.INBOUND
        for policy in policies
    }
    if len(directions) != 1:
        _refuse(
            state,
            "policies use the state in both directions"
            if directions
            else "no policy uses the state, so its traffic is not known",
            "pass the output of 'ip xfrm policy' as well, or leave the state out",
        )
    (direction,) = directions
    if state.direction not in (None, direction):
        _refuse(state, f"the state is {state.direction}, but its policies are {direction}")
    end = "out" if direction is Direction.OUTBOUND else "in"
    base = f"xfrm-{state.spi:08x}"
    names = [f"{base}/{end}", *(f"{base}-{number}/{end}" for number in range(2, len(taken) + 3))]
    return _Use(next(n for n in names if n not in taken), state, direction, tuple(policies))


def _sa(use: _Use, uses: Sequence[_Use]) -> SaEntry:
    state = use.state
    outbound = use.direction is Direction.OUTBOUND
    parameters: dict[str, object] = {
        "name": use.name,
        "direction": use.direction.value,
        "spi": state.spi,
        "key": format_keymat(state.keymat),
        "mode": state.mode.value,
        "encapsulation": Encapsulation.NONE.value,
        "local": str(state.src if outbound else state.dst),
        "remote": str(state.dst if outbound else state.src),
        "suite": state.suite.name,
        "esn": state.esn,
        "replay_window": _window(state.window),
        "pair": _pair(use, uses),
        "used_seq": _used_seq(use),
        **_traffic(use),
    }
    if state.udp is not None:
        parameters["encapsulation"] = Encapsulation.UDP.value
        parameters["remote_port"] = state.udp.dport if outbound else state.udp.sport
    return _checked(state, parse_sa_entry, parameters)


def _window(kernel: int) -> int:
    """The replay window of the SA: no smaller than the kernel's, and a multiple of 64."""
    window = kernel or DEFAULT_REPLAY_WINDOW
    return min(max(-(-window // 64) * 64, MIN_REPLAY_WINDOW), MAX_REPLAY_WINDOW)


def _used_seq(use: _Use) -> int:
    """Highest number that the kernel may have sent with the key, or has accepted with it."""
    state = use.state
    if use.direction is Direction.INBOUND:
        return state.seq
    if state.oseq + MARGIN >= LAST_SEQ:
        _refuse(
            state,
            f"the kernel has sent {state.oseq} packets with this key, and too few numbers up to "
            "2^32 are left",
            "give both ends new keys",
        )
    return state.oseq + MARGIN


def _pair(use: _Use, uses: Sequence[_Use]) -> str | None:
    """The SA of the opposite direction, or None unless there is exactly one."""
    state = use.state
    back = (state.dst, state.src, state.reqid, state.mode)
    names = [
        other.name
        for other in uses
        if other.direction is not use.direction
        and (other.state.src, other.state.dst, other.state.reqid, other.state.mode) == back
    ]
    return names[0] if len(names) == 1 else None


def _traffic(use: _Use) -> dict[str, object]:
    """The traffic that the policies let the SA carry, as SA fields: every pair of prefixes."""
    found = list(dict.fromkeys(_seen_from_here(policy) for policy in use.policies))
    if use.state.selector is not None:
        allowed = _turned(use.state.selector, use.direction)
        for one, policy in ((_seen_from_here(policy), policy) for policy in use.policies):
            if not covers(allowed, one):
                _refuse(
                    policy,
                    f"the policy matches more than the 'sel' of its state ({use.state.where})",
                )
    locals_ = tuple(dict.fromkeys(one.local for one in found))
    remotes = tuple(dict.fromkeys(one.remote for one in found))
    whats = {(one.protocol, one.local_port, one.remote_port) for one in found}
    pairs = {(one.local, one.remote) for one in found}
    complete = {(a, b) for a in locals_ for b in remotes if a.version == b.version}
    if len(whats) > 1 or pairs != complete:
        others = ", ".join(policy.where for policy in use.policies[1:])
        _refuse(
            use.policies[0],
            f"this policy and {others} use one SA for traffic that an SA of esp-gw can't combine",
            "it carries every pair of its local and remote prefixes, with one protocol and port",
        )
    ((protocol, local_port, remote_port),) = whats
    return {
        "local_ts": [str(net) for net in locals_],
        "remote_ts": [str(net) for net in remotes],
        "protocol": protocol,
        "local_ts_port": _text(local_port),
        "remote_ts_port": _text(remote_port),
    }


def _policy(policy: XfrmPolicy, sender: _Use | None, taken: Mapping[str, str]) -> PolicyEntry:
    if sender is not None:
        action, base = Action.PROTECT, sender.name.removesuffix("/out")
    else:
        action = Action.DISCARD if policy.block else Action.BYPASS
        base = f"xfrm-{action}"
    names = [base, *(f"{base}-{number}" for number in range(2, len(taken) + 3))]
    selector = _seen_from_here(policy)
    return _checked(
        policy,
        parse_policy_entry,
        {
            "name": next(name for name in names if name not in taken),
            "action": action.value,
            "sa": None if sender is None else sender.name,
            "local_ts": [str(selector.local)],
            "remote_ts": [str(selector.remote)],
            "protocol": selector.protocol,
            "local_port": _text(selector.local_port),
            "remote_port": _text(selector.remote_port),
        },
    )


def _in_order(dump: Dump) -> list[XfrmPolicy]:
    """The outbound policies, in the order in which they are tried."""
    policies = [policy for policy in dump.policies if policy.direction is PolicyDirection.OUT]
    policies.sort(key=lambda policy: policy.priority)
    for _, group in groupby(policies, lambda policy: policy.priority):
        for one, other in combinations(group, 2):
            same = (one.block, one.template) == (other.block, other.template)
            if not same and overlap(_seen_from_here(one), _seen_from_here(other)):
                _refuse(
                    other,
                    f"the policy overlaps the one of {one.where}, has the same priority but a "
                    "different effect, so it is ambiguous which one applies",
                    "give them different priorities with 'ip xfrm policy update'",
                )
    return policies


def _seen_from_here(policy: XfrmPolicy) -> Selector:
    outbound = policy.direction is PolicyDirection.OUT
    return _turned(policy.selector, Direction.OUTBOUND if outbound else Direction.INBOUND)


def _turned(selector: XfrmSelector, direction: Direction) -> Selector:
    """The selector with the side of this gateway as the local one."""
    sport, dport = (
        None if port is None else PortRange(port, port) for port in (selector.sport, selector.dport)
    )
    if direction is Direction.OUTBOUND:
        return Selector(selector.src, selector.dst, selector.protocol, sport, dport)
    return Selector(selector.dst, selector.src, selector.protocol, dport, sport)


def _text(ports: PortRange | None) -> str | None:
    return None if ports is None else str(ports)


def _port(uses: Sequence[_Use]) -> int | None:
    """The local UDP port, or None without UDP encapsulation; a gateway has only one."""
    first: tuple[int, XfrmState] | None = None
    for use in uses:
        if (udp := use.state.udp) is None:
            continue
        port = udp.sport if use.direction is Direction.OUTBOUND else udp.dport
        if first is None:
            first = port, use.state
        elif first[0] != port:
            _refuse(
                use.state,
                f"the local UDP port is {port} here and {first[0]} in {first[1].where}: "
                "a gateway has only one",
            )
    return None if first is None else first[0]


def _notes(uses: Sequence[_Use]) -> Iterator[str]:
    for use in uses:
        if use.direction is Direction.INBOUND and not use.state.window:
            yield (
                f"{use.state.where}: the kernel kept no replay window for {use.name}: until the "
                "peer's next packet, packets recorded earlier can be accepted once more"
            )
        if use.direction is Direction.OUTBOUND and use.state.esn:
            yield (
                f"{use.state.where}: {use.name} ends at number 2^32 - 1 even with ESN, because the "
                "kernel began it: plan new keys"
            )


def _checked(
    of: XfrmState | XfrmPolicy,
    parse: Callable[[Mapping[str, object]], Entry],
    parameters: Mapping[str, object],
) -> Entry:
    try:
        return parse(parameters)
    except ControlError as error:
        raise EspGwError(error.what, where=of.where) from None


def _refuse(of: XfrmState | XfrmPolicy, what: str, hint: str | None = None) -> NoReturn:
    raise EspGwError(what, where=of.where, hint=hint)
