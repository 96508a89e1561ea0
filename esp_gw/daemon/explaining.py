"""The way of a flow in steps: what takes it where, and what stops it.

A step that stops it names the command that mends it. Nothing is looked at here: the SPD, the SAs
and the kernel's answers come in, steps go out.

Sources: RFC 4301 4.4.1, 5.1, 5.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from esp_gw.daemon.sa_steps import use_sas
from esp_gw.daemon.steps import (
    RELOAD,
    Scene,
    Steps,
    by,
    selector_text,
    transport_text,
)
from esp_gw.model import Action, Direction, Origin, Policy
from esp_gw.network.filters import Passage, acceptance, dropped_by
from esp_gw.network.flow import Flow, matches
from esp_gw.network.route_lookup import Way
from esp_gw.network.survey import forwarding_setting
from esp_gw.network.translations import exemption, translated_by

_NAMED = 3
_TCP_HEADERS = {4: 40, 6: 60}


def explain(scene: Scene) -> dict[str, object]:
    """Return the way of a flow: verdict, directions, policy, SAs, MTU and steps."""
    return _Story(scene).told()


class _Story:
    """The story of one flow."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._flow = scene.flow
        self._survey = scene.survey
        self._steps = Steps()
        self._policy: Policy | None = None
        self._sas: list[str] = []
        self._mtu: int | None = None
        self._directions: list[Direction] = []

    def told(self) -> dict[str, object]:
        self._tell()
        policy = self._policy
        return {
            "verdict": self._steps.verdict,
            "directions": list(self._directions),
            "policy": None if policy is None else policy.name,
            "tunnel": None if policy is None else policy.tunnel,
            "sas": self._sas,
            "mtu": self._mtu,
            "steps": [asdict(step) for step in self._steps.all],
        }

    def _tell(self) -> None:
        survey, tun = self._survey, self._scene.tun
        from_here, to_here = survey.to_source.is_local, survey.to_destination.is_local
        if from_here and to_here:
            text = "both addresses are of this host: no packet leaves it"
            self._steps.leave_alone("route", text)
            return
        outbound, inbound = self._first(self._flow), self._first(self._flow.reverse)
        comes = not from_here and _protects(inbound)
        if comes and not to_here:
            comes = survey.to_source.device == tun or not _protects(outbound)
        if comes and inbound is not None:
            self._come(inbound)
        if to_here:
            if not comes:
                self._come_around(inbound)
        elif not comes:
            arrives = "" if from_here else survey.to_source.device
            if from_here or self._arrive(arrives):
                self._go(outbound, survey.out, arrives)
        elif survey.on.device == tun:
            self._go(outbound, survey.on, tun)

    def _arrive(self, interface: str) -> bool:
        """Tell by which interface a flow of another host comes; return True if it does."""
        source = self._flow.source
        if self._survey.to_source.error or not interface:
            self._steps.stop(
                "from",
                f"{source} is not of this host, and no route leads to it: its answers are lost",
                f"add one: 'ip route add {source} via ROUTER'",
            )
            return False
        self._steps.add("from", f"{source} is not of this host: it comes by {interface}")
        return True

    # Outbound.

    def _go(self, policy: Policy | None, way: Way, arrives: str) -> None:
        """Tell of a flow to another host, of this one or one that `arrives` at an interface."""
        if policy is None:
            self._match_nothing(way)
            return
        self._policy = policy
        match policy.action:
            case Action.DISCARD:
                self._discard(policy, self._flow)
            case Action.BYPASS:
                self._bypass(policy, way)
            case Action.PROTECT:
                self._directions.append(Direction.OUTBOUND)
                self._steps.add("policy", self._of_policy(policy, self._flow))
                if self._is_routed_into_tun(way, arrives):
                    hook = "forward" if arrives else "output"
                    self._filter(Passage(hook, self._flow, arrives, self._scene.tun))
                    self._translate(Passage("postrouting", self._flow, arrives, self._scene.tun))
                    self._use(policy, Direction.OUTBOUND, self._flow)
                    self._measure(way)

    def _match_nothing(self, way: Way) -> None:
        tun, flow = self._scene.tun, self._flow
        if way.device != tun or way.error:
            self._steps.leave_alone("policy", "no policy matches: it is for no tunnel")
            self._outside(way)
            return
        near = [
            (policy, selector)
            for policy in self._scene.policies
            for selector in policy.selectors
            if flow.destination in selector.remote and _protects(policy)
        ]
        text = f"no policy matches, and the kernel routes it into {tun}: it is dropped as no-policy"
        if not near:
            todo = f"see 'ip route get {flow.destination}' for the route of another program"
            self._steps.stop("policy", text, todo)
            return
        policy, selector = near[0]
        if flow.source not in selector.local:
            carried = ", ".join(dict.fromkeys(str(each.local) for _, each in near[:_NAMED]))
            self._steps.stop(
                "policy",
                f"{text}; {policy.name} carries to {selector.remote} what comes from {carried}",
                f"give it a source in there, or add {flow.source} to local_ts here and to "
                f"remote_ts of the peer, {RELOAD} at both ends",
            )
        else:
            self._steps.stop(
                "policy",
                f"{text}; {policy.name} carries {selector_text(selector)}",
                f"widen its selectors at both ends, {RELOAD}",
            )

    def _discard(self, policy: Policy, flow: Flow) -> None:
        todo = (
            f"'esp-gw policy delete {policy.name}' lifts it"
            if policy.origin is Origin.CLI
            else f"if it should pass, take it out of the configuration, {RELOAD}"
        )
        self._steps.stop("policy", f"{self._of_policy(policy, flow)}: it is dropped", todo)

    def _bypass(self, policy: Policy, way: Way) -> None:
        self._steps.leave_alone("policy", self._of_policy(policy, self._flow))
        if way.device == self._scene.tun and not way.error:
            self._steps.stop(
                "route",
                f"the kernel routes it into {way.device} all the same: it is dropped as "
                "policy-bypass",
                "'ip rule' shows what precedes; 'esp-gw status' warns of what is missing",
            )
        else:
            self._outside(way)

    def _outside(self, way: Way) -> None:
        if way.error:
            self._steps.stop("route", *self._scene.refusal(way, self._flow))
        else:
            self._steps.add("route", f"in the clear {by(way)}")

    def _is_routed_into_tun(self, way: Way, arrives: str) -> bool:
        """Tell of the route of a protected flow; return True if it leads into the TUN."""
        if arrives and not self._forwards(arrives):
            return False
        tun, target = self._scene.tun, self._flow.destination
        if way.error:
            self._steps.stop("route", *self._scene.refusal(way, self._flow, arrives))
        elif way.device == tun:
            self._steps.add("route", f"into {tun}, by table {way.table}")
            return True
        elif self._survey.is_near:
            self._directions.clear()
            self._steps.leave_alone(
                "route",
                f"{target} is in a network of {way.device}, which this host is connected to: it is "
                "reached without the tunnel",
            )
        else:
            self._steps.stop(
                "route",
                f"the kernel sends it {by(way)}, not into {tun}: a rule or route of another "
                "program precedes, and what leaves is dropped as cleartext-out",
                f"see 'ip rule' and 'ip route get {target}'",
            )
        return False

    def _measure(self, way: Way) -> None:
        if way.mtu:
            self._mtu = way.mtu
            mss = way.mtu - _TCP_HEADERS[self._flow.source.version]
            self._steps.add("mtu", f"{way.mtu} bytes, a TCP MSS of {mss}")

    # Inbound.

    def _come(self, policy: Policy) -> None:
        """Tell of a flow that has to come by a tunnel."""
        self._directions.append(Direction.INBOUND)
        self._policy = policy
        reverse = self._flow.reverse
        rule = "it has to come by an SA, or is dropped"
        self._steps.add("policy", f"{self._of_policy(policy, reverse)}: {rule}")
        self._use(policy, Direction.INBOUND, reverse)
        on, tun = self._survey.on, self._scene.tun
        if on.error:
            if self._survey.to_destination.is_local or self._forwards(tun):
                self._steps.stop("route", *self._scene.refusal(on, self._flow, tun))
        elif on.is_local:
            self._steps.add("route", f"out of {tun} to this host")
            self._filter(Passage("input", self._flow, tun))
            self._answer()
        elif on.device != tun and self._forwards(tun):
            self._steps.add("route", f"out of {tun}, then {by(on)}")
            self._filter(Passage("forward", self._flow, tun, on.device))
            self._answer(on.device)

    def _answer(self, comes_by: str = "") -> None:
        """Tell of the answers, of this host or of another one that `comes_by` an interface."""
        back, tun = self._survey.back, self._scene.tun
        if back.error and comes_by and not self._forwards(comes_by):
            return
        if back.error:
            found, todo = self._scene.refusal(back, self._flow.reverse)
            self._steps.stop("answers", f"they don't find back: {found}", todo)
        elif back.device != tun:
            self._steps.warn(
                "answers",
                f"they leave {by(back)}, not by {tun}",
                f"see 'ip rule' and 'ip route get {self._flow.source}'",
            )

    def _come_around(self, policy: Policy | None) -> None:
        """Tell of a flow to this host that no tunnel carries."""
        self._policy = policy
        if policy is None:
            text = f"no policy is for {self._flow.source}"
        elif policy.action is Action.DISCARD:
            self._discard(policy, self._flow.reverse)
            return
        else:
            text = self._of_policy(policy, self._flow.reverse)
        self._steps.leave_alone("policy", f"{text}: it comes in the clear")

    # Both ways.

    def _use(self, policy: Policy, direction: Direction, seen: Flow) -> None:
        self._sas += use_sas(self._scene, self._steps, policy, direction, seen)

    def _forwards(self, interface: str) -> bool:
        """Return True if packets of an interface are forwarded; tell it if they aren't."""
        if interface not in self._survey.unforwarded:
            return True
        version = self._flow.source.version
        name = forwarding_setting(version, interface, whole=self._survey.forwards_nothing)
        self._steps.stop(
            "forward",
            f"this host forwards no IPv{version} packets of {interface}: {name} is 0",
            f"run 'sysctl -w {name}=1'",
        )
        return False

    def _filter(self, passage: Passage) -> None:
        if self._survey.unseen:
            self._steps.warn("firewall", f"not looked at: {self._survey.unseen}")
            return
        dropped = dropped_by(self._survey.ruleset, passage)
        if dropped is None:
            self._steps.add("firewall", f"no {passage.hook} chain drops it")
            return
        todo = f"run {acceptance(dropped.chain, passage, self._scene.tun)}"
        if dropped.certain:
            self._steps.stop("firewall", f"{dropped.chain} drops it", todo)
        else:
            unless = "unless a rule accepts it that can't be judged from here"
            self._steps.warn("firewall", f"{dropped.chain} drops it, {unless}", todo)

    def _translate(self, passage: Passage) -> None:
        """Tell of a rule that changes the source of what goes into the TUN."""
        found = translated_by(self._survey.ruleset, passage)
        if found is None:
            return
        unless = "" if found.certain else ", unless a rule keeps it that can't be judged from here"
        self._steps.warn(
            "nat",
            f"{found.chain} changes its source ({found.statement}){unless}: the policy and the "
            "peer see another one than this",
            f"run {exemption(found.chain, self._scene.tun)}",
        )

    # The SPD.

    def _first(self, flow: Flow) -> Policy | None:
        """Return the first policy that matches a flow whatever is not said of it."""
        return next(
            (
                policy
                for policy in self._scene.policies
                if any(matches(selector, flow) for selector in policy.selectors)
            ),
            None,
        )

    def _of_policy(self, policy: Policy, flow: Flow) -> str:
        """Return a policy with the selector that matches, and what comes before it."""
        selector = next(each for each in policy.selectors if matches(each, flow))
        text = f"{policy.name}: {policy.action} {selector_text(selector)}"
        earlier = list(self._before(policy, flow))
        return f"{text} (first {', '.join(earlier[:_NAMED])})" if earlier else text

    def _before(self, policy: Policy, flow: Flow) -> Iterator[str]:
        """Yield the earlier policies that take a part of what is not said."""
        for each in self._scene.policies:
            if each is policy:
                return
            for selector in each.selectors:
                if matches(selector, flow) is None:
                    yield f"{each.name}: {each.action} {transport_text(selector)}"
                    break


def _protects(policy: Policy | None) -> bool:
    return policy is not None and policy.action is Action.PROTECT
