"""The owner's SAs and policies against a plain model, and against their records."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from esp_gw.config.conflicts import find_conflicts
from esp_gw.daemon.children import ChildPolicy, ChildSa, parse
from esp_gw.daemon.held import PREFIX, Held, Key, key_of, outbound_of, sa_name
from esp_gw.daemon.held_file import load_held, records_of
from esp_gw.daemon.left_policies import LEFT
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.errors import ControlError
from esp_gw.ledger.ephemeral import Records
from esp_gw.model import Action, Direction

SPIS = st.integers(300, 303)
OUTBOUND = st.builds(Key, st.just(Direction.OUTBOUND), SPIS, st.integers(0, 1))
"""Each number is that of a peer."""
KEYS = OUTBOUND | st.builds(Key, st.just(Direction.INBOUND), SPIS, st.just(0))
IDS = st.sampled_from(["a", "b", "c"])
SELECTORS = [{"local": "10.1.0.0/16", "remote": "10.2.0.1-10.2.0.9"}]


class FakeFile:
    """The records, as the file has them."""

    def __init__(self) -> None:
        self.there: dict[tuple[str, str], str] = {}

    def write(self, records: Records) -> None:
        for key in records.removed:
            del self.there[key]
        self.there |= records.put

    async def records(self, kind: str) -> list[tuple[str, str]]:
        return [(name, text) for (each, name), text in self.there.items() if each == kind]


def at_once(work: Coroutine[Any, Any, Held]) -> Held:
    """Return the result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        held: Held = end.value
        return held
    raise AssertionError("it waits")


class Owner(RuleBasedStateMachine):
    """`sas` has the child of each SA and whether it has expired, `policies` priority and SA."""

    def __init__(self) -> None:
        super().__init__()
        self.held = Held()
        self.file = FakeFile()
        self.sas: dict[Key, tuple[int, bool]] = {}
        self.policies: dict[str, tuple[int, Key | None]] = {}
        self.is_left = False
        self.number = 0

    def move(self, after: Held) -> None:
        self.file.write(records_of(self.held, after, self.held.retired(after)))
        self.held = after

    def entry(self, key: Key) -> ChildSa:
        self.number += 1
        fields = {
            **key.plain(),
            "suite": "aes128gcm16",
            "key": f"{self.number:040x}",
            "local": "192.0.2.1",
            "remote": f"192.0.2.{2 + key.number}",
            "selectors": SELECTORS,
            "child": f"c{key.spi}",
        }
        return parse(ChildSa, fields)

    def policy(self, name: str, priority: int, used: Key | None) -> ChildPolicy:
        fields: dict[str, object] = {"id": name, "action": "protect", "priority": priority}
        if used is not None:
            fields |= {"sa": used.spi, "sa_number": used.number}
        return parse(ChildPolicy, {**fields, "selectors": SELECTORS})

    @rule(key=KEYS, name=IDS, priority=st.integers(0, 3), used=OUTBOUND | st.none())
    def install(self, key: Key, name: str, priority: int, used: Key | None) -> None:
        entry, policy = self.entry(key), self.policy(name, priority, used)
        usable = {each for each, (_, gone) in self.sas.items() if not gone} | {key}
        if key in self.sas or (used is not None and used not in usable):
            try:
                self.held.install([entry], [policy])
            except ControlError:
                return
            raise AssertionError("not refused")
        self.move(self.held.install([entry], [policy]))
        self.sas[key] = (self.number, False)
        self.policies[name] = (priority, used)
        # All have the same selectors.
        self.is_left = False

    @rule(key=KEYS)
    def remove(self, key: Key) -> None:
        if key not in self.sas:
            return
        self.move(self.held.remove([key]))
        del self.sas[key]
        self.close(key)

    @rule(key=KEYS)
    def expire(self, key: Key) -> None:
        if key not in self.sas:
            return
        self.move(self.held.expire(key))
        self.sas[key] = (self.sas[key][0], True)
        self.close(key)

    def close(self, key: Key) -> None:
        self.policies = {
            name: (priority, None if used == key else used)
            for name, (priority, used) in self.policies.items()
        }

    @rule(name=IDS)
    def remove_policy(self, name: str) -> None:
        if name in self.policies:
            self.move(self.held.remove_policy(name))
            del self.policies[name]

    @rule()
    def flush(self) -> None:
        """Another session begins, which doesn't take over."""
        self.move(self.held.flushed())
        self.is_left |= bool(self.policies)
        self.sas, self.policies = {}, {}

    @invariant()
    def is_what_the_model_has(self) -> None:
        for held in (self.held, at_once(load_held(cast(Any, self.file)))):
            there = {
                key: (int(each.entry.key.get_secret_value(), 16), each.expired)
                for key, each in held.sas.items()
            }
            assert there == self.sas
            spd = {name: (each.priority, outbound_of(each)) for name, each in held.policies.items()}
            assert spd == self.policies
            self.check(held.join(Desired(GatewaySettings())))
        assert len(self.held.left) == self.is_left

    def check(self, wanted: Desired) -> None:
        """The gateway gets no contradiction, and never more than the model has."""
        assert find_conflicts(wanted.sas, wanted.policies) == []
        in_use = {sa_name(key) for key, (_, expired) in self.sas.items() if not expired}
        assert {sa.name for sa in wanted.sas} == in_use
        assert {key_of(name) for name in in_use} <= self.sas.keys()
        assert all(policy.action is Action.PROTECT for policy in wanted.policies)
        spd = [policy for policy in wanted.policies if not policy.name.startswith(LEFT)]
        # Policies left closed come last, and have no SA.
        assert list(wanted.policies[: len(spd)]) == spd
        assert not any(policy.sas for policy in wanted.policies[len(spd) :])
        assert {policy.name.removeprefix(PREFIX) for policy in spd} == set(self.policies)
        priorities = [self.policies[p.name.removeprefix(PREFIX)][0] for p in spd]
        assert priorities == sorted(priorities)
        for tunnel in wanted.tunnels:
            assert set(tunnel.sas) <= in_use
            assert len(tunnel.sas) == 2
        assert wanted.lasting.policies == wanted.lasting.sas == ()

    @invariant()
    def only_what_is_held_has_a_record(self) -> None:
        assert len(self.file.there) == len(self.sas) + len(self.policies)
        for text in self.file.there.values():
            json.loads(text)


TestOwner = Owner.TestCase
TestOwner.settings = settings(max_examples=40, stateful_step_count=20)
