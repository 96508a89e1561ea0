"""The control methods of whole tunnels of the CLI: a pair of SAs and their policy, in one step.

The tunnel NAME is what `esp_gw.model.named_pairs` takes for one: the SAs NAME/out and NAME/in, each
other's pair, and the policy NAME.
"""

from __future__ import annotations

from collections.abc import Mapping

from esp_gw.config.added import (
    PolicyEntry,
    StoredState,
    parse_policy_entry,
    parse_sa_entry,
    plain,
    revealed,
)
from esp_gw.control.server import Caller, Handler, Reply
from esp_gw.daemon.additions import Additions
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.parameters import Parameters, name_of, refuse_existing
from esp_gw.daemon.sources import Sources
from esp_gw.errors import ControlError
from esp_gw.model import Action, Mode

SETTABLE = frozenset(
    {
        *("local", "remote", "remote_port", "encapsulation", "local_ts", "remote_ts"),
        *("esn", "replay_window", "keepalive", "liveness"),
    }
)
"""The fields that a tunnel may change without new keys."""
_OF_POLICY = ("local_ts", "remote_ts")
_OF_ONE_SA = frozenset({"direction", "spi", "key", "pair"})
_SIDES = (("outbound", "out"), ("inbound", "in"))


class AddedTunnels:
    """The methods that add, change and remove tunnels of the CLI; each waits for its turn."""

    def __init__(self, gateway: Gateway, sources: Sources, additions: Additions) -> None:
        self._gateway = gateway
        self._sources = sources
        self._additions = additions

    def handlers(self) -> Mapping[str, Handler]:
        """Return the methods by name."""
        methods: dict[str, Handler] = {
            "AddTunnel": self.add,
            "SetTunnel": self.set,
            "DeleteTunnel": self.delete,
        }
        return {name: self._in_turn(handler) for name, handler in methods.items()}

    def _in_turn(self, handler: Handler) -> Handler:
        async def run(parameters: Parameters, caller: Caller) -> Reply:
            return await self._sources.changes.run(lambda: handler(parameters, caller))

        return run

    async def add(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Install and store a tunnel: all of it, or nothing."""
        name = name_of(parameters)
        given = dict(parameters)
        before = given.pop("before", None)
        halves = [_half(given, side) for side, _ in _SIDES]
        for field in _OF_ONE_SA & given.keys():
            raise ControlError("InvalidParameter", f"{field}: belongs to one SA, not to a tunnel")
        if given.get("mode", Mode.TUNNEL) != Mode.TUNNEL:
            raise ControlError(
                "InvalidParameter",
                "mode: a tunnel of the CLI is in tunnel mode",
                hint="'esp-gw sa add' and 'esp-gw policy add' make one of transport mode",
            )
        out, into = (
            parse_sa_entry(
                {**given, **half, "name": f"{name}/{end}", "direction": side}
                | ({"pair": f"{name}/out"} if end == "in" else {})
            )
            for half, (side, end) in zip(halves, _SIDES, strict=True)
        )
        policy = _policy(name, given, {} if before is None else {"before": before})
        added = self._sources.added
        sas = [sa.name for sa in (*self._gateway.sas, *self._gateway.waiting)]
        for each in (out, into):
            refuse_existing("SA", each.name, [*sas, *(old.name for old in added.sas)])
        refuse_existing("SA", name, sas)
        policies = [each.name for each in self._gateway.policies]
        refuse_existing("policy", name, [*policies, *(old.name for old in added.policies)])
        if policy.before is not None and policy.before not in policies:
            raise ControlError(
                "NotFound",
                f"there is no policy {policy.before} to precede",
                hint="'esp-gw policy list' shows the existing ones",
            )
        await self._sources.add(
            StoredState((*added.sas, out, into), (*added.policies, policy)), f"tunnel {name}"
        )
        return {}

    async def set(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Change fields of a tunnel that the CLI added; the keys and their numbers go on."""
        name = name_of(parameters)
        changes = {each: value for each, value in parameters.items() if each != "name"}
        for each in changes:
            if each not in SETTABLE:
                raise ControlError("InvalidParameter", f"{each}: can't be set in a tunnel")
        self._require(name, "change it in")
        added = self._sources.added
        own = _own_sas(name)
        sas = tuple(
            parse_sa_entry(revealed(entry) | changes) if entry.name in own else entry
            for entry in added.sas
        )
        of_policy = {each: changes[each] for each in _OF_POLICY if each in changes}
        policies = tuple(
            parse_policy_entry(plain(entry) | of_policy) if entry.name == name else entry
            for entry in added.policies
        )
        await self._sources.add(StoredState(sas, policies), f"tunnel {name}")
        return {}

    async def delete(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Remove a tunnel that the CLI added, with its policy: what it protected is open then."""
        name = name_of(parameters)
        self._require(name, "remove it from")
        own = _own_sas(name)
        for policy in self._additions.placed():
            if policy.sa in own and policy.name != name:
                raise ControlError(
                    "Refused",
                    f"the policy {policy.name} needs the SA {policy.sa}",
                    hint=f"run 'esp-gw policy delete {policy.name}' first",
                )
        self._additions.refuse_displacing({name})
        added = self._sources.added
        await self._sources.add(
            StoredState(
                tuple(entry for entry in added.sas if entry.name not in own),
                tuple(entry for entry in added.policies if entry.name != name),
            ),
            f"tunnel {name}",
        )
        return {}

    def _require(self, name: str, todo: str) -> None:
        """Raise ControlError if the CLI added no tunnel of this name; `todo` as of `not_added`."""
        added = self._sources.added
        policies = [each.name for each in added.policies if each.sa == f"{name}/out"]
        if name not in policies or not _own_sas(name) <= {entry.name for entry in added.sas}:
            present = [tunnel.name for tunnel in self._sources.tunnels]
            raise self._additions.not_added("tunnel", name, present, todo)


def _own_sas(name: str) -> set[str]:
    return {f"{name}/{end}" for _, end in _SIDES}


def _half(given: dict[str, object], side: str) -> dict[str, object]:
    """Take the SPI and the key of one direction out of the parameters."""
    half = given.pop(side, None)
    if not isinstance(half, dict) or half.keys() != {"spi", "key"}:
        raise ControlError("InvalidParameter", f"{side}: expected spi and key")
    return half


def _policy(name: str, given: Mapping[str, object], more: Mapping[str, object]) -> PolicyEntry:
    """Return the policy of a tunnel, of the same traffic as its SAs."""
    fields = {ours: given[theirs] for ours, theirs in _SELECTORS if given.get(theirs) is not None}
    return parse_policy_entry(
        {**fields, **more, "name": name, "action": Action.PROTECT, "sa": f"{name}/out"}
    )


_SELECTORS = (
    ("local_ts", "local_ts"),
    ("remote_ts", "remote_ts"),
    ("protocol", "protocol"),
    ("local_port", "local_ts_port"),
    ("remote_port", "remote_ts_port"),
)
"""The fields of a policy, and those of an SA that they are taken from."""
