"""The gateway's side of an owner's session, in memory: checks each request, and records it.

What it answers follows the control protocol; what a request may not say lands in `faults`.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from esp_gw.demo.netns import Namespace
from esp_gw.model import SUITES
from lab.waiting import holds_within
from tests.support.fake_ike_port import PORT, FakeIkePort

PREFIX = "io.esp_gw."
SA_MEMBERS = {
    *("direction", "spi", "suite", "key", "mode", "encapsulation", "local", "remote"),
    *("local_port", "remote_port", "selectors", "esn", "replay_window", "keepalive"),
    *("local_original", "remote_original", "child"),
    *("soft_bytes", "hard_bytes", "soft_packets", "hard_packets"),
    *("soft_seconds", "hard_seconds", "peer", "connection"),
}
POLICY_MEMBERS = {"id", "action", "selectors", "priority", "sa", "child"}
SINCE_VERSION_2 = {"trap", "connection"}
SELECTOR_MEMBERS = {"local", "remote", "protocol", "local_port", "remote_port"}
SALT_LEN = 4
MAX_LISTED = 256

Name = tuple[str, int]
Json = dict[str, Any]


class RefusalError(Exception):
    """An answer that is an error: its name and its message."""


def check(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def is_port(value: object) -> bool:
    if isinstance(value, str):
        first, _, last = value.partition("-")
        return 0 <= int(first) < int(last) <= 0xFFFF
    return value is None or (type(value) is int and 0 <= value <= 0xFFFF)


def check_network(text: str) -> int:
    """Check a prefix or a range of addresses, and return its IP version."""
    if "-" in text:
        first, last = (ipaddress.ip_address(end) for end in text.split("-"))
        check(int(first) < int(last), f"range {text}")
        return first.version
    return ipaddress.ip_network(text).version


def check_selectors(selectors: list[Json]) -> None:
    check(selectors, "no selectors")
    for selector in selectors:
        check(set(selector) == SELECTOR_MEMBERS, f"members of {selector}")
        versions = {check_network(selector["local"]), check_network(selector["remote"])}
        check(len(versions) == 1, f"two IP versions: {selector}")
        protocol = selector["protocol"]
        check(protocol is None or 0 < protocol < 256, f"protocol {protocol}")
        check(is_port(selector["local_port"]), f"port of {selector}")
        check(is_port(selector["remote_port"]), f"port of {selector}")


def check_sa(sa: Json) -> None:
    check(set(sa) - {"number"} == SA_MEMBERS, f"members: {set(sa) ^ SA_MEMBERS}")
    check(sa["direction"] in ("inbound", "outbound"), "direction")
    check(256 <= sa["spi"] <= 0xFFFFFFFF, "spi")
    suite = SUITES[sa["suite"]]
    check(len(bytes.fromhex(sa["key"])) == suite.key_len + SALT_LEN, "length of the key")
    check(any(bytes.fromhex(sa["key"])), "a wiped key")
    check(sa["mode"] in ("tunnel", "transport"), "mode")
    check(sa["encapsulation"] in ("none", "udp"), "encapsulation")
    in_udp = sa["encapsulation"] == "udp"
    check(sa["local_port"] == (PORT if in_udp else None), "local_port")
    check(bool(sa["remote_port"]) is in_udp, "remote_port")
    sends = in_udp and sa["direction"] == "outbound"
    check(bool(sa["keepalive"]) is sends, "keepalive")
    versions = {ipaddress.ip_address(sa[end]).version for end in ("local", "remote")}
    check(len(versions) == 1, "outer addresses of two IP versions")
    check_selectors(sa["selectors"])
    check(type(sa["esn"]) is bool, "esn")
    check(64 <= sa["replay_window"] <= 8192 and not sa["replay_window"] % 64, "replay_window")
    check(type(sa["child"]) is str, "child")
    for name in ("peer", "connection"):
        check(0 < len(sa[name]) < 256 and sa[name].isprintable(), name)
    for limit in ("bytes", "packets", "seconds"):
        soft, hard = sa[f"soft_{limit}"] or 0, sa[f"hard_{limit}"] or 0
        check(soft >= 0 and (not hard or soft <= hard), f"limits: {soft}, {hard}")


def check_policy(policy: Json, version: int) -> None:
    members = POLICY_MEMBERS | (SINCE_VERSION_2 if version >= 2 else set())
    check(set(policy) - {"sa_number"} == members, f"members: {set(policy) ^ members}")
    check(0 < len(policy["id"]) <= 64 and policy["id"].isprintable(), "id")
    check(policy["action"] in ("protect", "bypass", "discard"), "action")
    check(type(policy["priority"]) is int and policy["priority"] >= 0, "priority")
    check(policy["sa"] is None or policy["action"] == "protect", "an SA that protects nothing")
    check_selectors(policy["selectors"])


def name_of(named: Json) -> Name:
    return named["direction"], named["spi"]


class FakeOwner:
    """A control server with one owner. Lasting state outlives `stop`, as the gateway's does."""

    def __init__(self, path: Path, namespace: Namespace) -> None:
        self.path = path
        self.version = 3
        self.ike_port: FakeIkePort | None = None
        self.requests: list[tuple[str, Json]] = []
        self.faults: list[str] = []
        self.sas: dict[Name, Json] = {}
        self.policies: dict[str, Json] = {}
        self.counters: dict[Name, Json] = {}
        self.refuse: dict[str, str] = {}
        """Messages with which a method is refused."""
        self.refused_networks: set[str] = set()
        """Remote networks for which no policy is installed, nor what comes with it."""
        self.reserved: set[int] = set()
        self.swallow: set[str] = set()
        """Methods that are carried out once, without an answer: the connection ends."""
        self.before_answer: Callable[[str, Json], None] = lambda method, parameters: None
        """Called when a request was carried out, while its sender waits."""
        self._namespace = namespace
        self._lock = threading.RLock()
        self._first_spi = self._next_spi = 0xC0000000 + int.from_bytes(os.urandom(3)) * 8
        self._session: socket.socket | None = None
        self._watch: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """End as by kill -9: every connection ends, SAs and policies stay."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        with self._lock:
            for connection in self._connections:
                connection.shutdown(socket.SHUT_RDWR)
        self._close_port()

    def calls(self, method: str) -> list[Json]:
        """Return the parameters of the requests of a method."""
        return [parameters for name, parameters in list(self.requests) if name == method]

    def protected(self) -> dict[str, int | None]:
        """Return the SAs of the protect policies, by the remote network."""
        with self._lock:
            return {
                policy["selectors"][0]["remote"]: policy["sa"]
                for policy in self.policies.values()
                if policy["action"] == "protect"
            }

    def event(self, name: str, **members: object) -> None:
        """Send an event to who watches."""
        assert holds_within(10, lambda: self._watch is not None), "nobody watches"
        message = {"continues": True, "parameters": {"event": name, **members}}
        assert self._watch is not None
        self._watch.sendall(json.dumps(message).encode() + b"\n")

    def end_others(self) -> None:
        """End every connection but the session's, once there is one."""
        assert holds_within(10, lambda: len(self._connections) > 1), "no other connection"
        for connection in [*self._connections]:
            if connection is not self._session:
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            for line in connection.makefile("rb"):
                answer = self._answer(connection, json.loads(line))
                if answer is not None:
                    self._reply(connection, answer)
        except OSError:
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
                if self._watch is connection:
                    self._watch = None
            connection.close()

    def _reply(self, connection: socket.socket, answer: Json) -> None:
        data = json.dumps(answer).encode() + b"\n"
        if self.ike_port is not None and answer.get("parameters") == {"port": PORT}:
            sent = socket.send_fds(connection, [data[:1]], [self.ike_port.theirs.fileno()])
            data = data[sent:]
            self.ike_port.theirs.close()
        connection.sendall(data)

    def _answer(self, connection: socket.socket, request: Json) -> Json | None:
        with self._lock:
            method = str(request["method"]).removeprefix(PREFIX)
            parameters = request.get("parameters", {})
            self.requests.append((method, parameters))
            try:
                check(set(request) <= {"method", "parameters"}, "members of the request")
                answer = self._carry_out(connection, method, parameters)
            except RefusalError as refusal:
                name, message = refusal.args
                return {"error": PREFIX + name, "parameters": {"message": message}}
            except Exception as fault:
                self.faults.append(f"{method}: {fault!r}")
                message = f"a fault of the request: {fault!r}"
                return {"error": PREFIX + "InvalidParameter", "parameters": {"message": message}}
            self.before_answer(method, parameters)
            if method in self.swallow:
                self.swallow.discard(method)
                raise OSError
            return answer

    def _carry_out(self, connection: socket.socket, method: str, parameters: Json) -> Json | None:
        if method in self.refuse:
            raise RefusalError("Refused", self.refuse[method])
        if method == "OpenSession":
            return {"parameters": self._open_session(connection, **parameters)}
        if method == "Watch":
            check(parameters == {"owner": "ike"}, "owner")
            self._watch = connection
            return None
        check(connection is self._session, f"{method} outside the session")
        methods = {
            "GetIkeSocket": self._get_ike_socket,
            "ReserveSpi": self._reserve_spi,
            "ReleaseSpi": self._release_spi,
            "InstallChild": self._install_child,
            "UpdateSa": self._update_sa,
            "RemoveSas": self._remove_sas,
            "RemovePolicy": self._remove_policy,
            "QuerySas": self._query_sas,
        }
        return {"parameters": methods[method](**parameters)}

    def _open_session(self, connection: socket.socket, owner: str, take_over: bool) -> Json:
        check(owner == "ike" and type(take_over) is bool, "owner, take_over")
        self._session = connection
        if not take_over:
            self.sas.clear()
            self.policies.clear()
        return {
            "version": self.version,
            "suites": list(SUITES),
            "sas": [self._counters(name) for name in self.sas],
            "policies": list(self.policies.values()),
        }

    def _get_ike_socket(self) -> Json:
        self._close_port()
        self.ike_port = FakeIkePort(self._namespace)
        return {"port": PORT}

    def _close_port(self) -> None:
        if self.ike_port is not None:
            self.ike_port.close()
            self.ike_port = None

    def _reserve_spi(self) -> Json:
        self._next_spi += 1
        self.reserved.add(self._next_spi)
        return {"spi": self._next_spi}

    def _release_spi(self, spi: int) -> Json:
        check(self.version >= 3, "a method of a later version")
        check(self._first_spi < spi <= self._next_spi, "an SPI that never was reserved")
        self.reserved.discard(spi)
        return {}

    def _install_child(self, sas: list[Json], policies: list[Json]) -> Json:
        check(sas or policies, "nothing to install")
        check(max(len(sas), len(policies)) <= MAX_LISTED, "too many")
        for sa in sas:
            check_sa(sa)
            check(name_of(sa) not in self.sas, "an SA that exists")
        keys = [sa["key"] for sa in (*sas, *self.sas.values())]
        check(len(keys) == len(set(keys)), "a key of two SAs")
        installed = {**self.sas, **{name_of(sa): sa for sa in sas}}
        for policy in policies:
            check_policy(policy, self.version)
            is_there = policy["sa"] is None or ("outbound", policy["sa"]) in installed
            check(is_there, "a policy with an SA that is not there")
            for selector in policy["selectors"]:
                if selector["remote"] in self.refused_networks:
                    raise RefusalError("Refused", f"{selector['remote']} is another policy's")
        self.sas = installed
        self.reserved -= {sa["spi"] for sa in sas if sa["direction"] == "inbound"}
        self.policies.update({policy["id"]: policy for policy in policies})
        return {}

    def _find(self, named: Mapping[str, Any]) -> Name:
        name = named["direction"], named["spi"]
        if name not in self.sas:
            raise RefusalError("NotFound", f"there is no SA {name}")
        return name

    def _update_sa(self, **parameters: Any) -> Json:
        known = {"direction", "spi", "local", "remote", "remote_port", "encapsulation"}
        check(set(parameters) == known, f"members: {set(parameters) ^ known}")
        self.sas[self._find(parameters)].update(parameters)
        return {}

    def _remove_sas(self, sas: list[Json]) -> Json:
        check(len(sas) <= MAX_LISTED, "too many")
        names = [self._find(named) for named in sas]
        for name in names:
            del self.sas[name]
            for policy in self.policies.values():
                if name == ("outbound", policy["sa"]):
                    policy["sa"] = None
        return {"sas": []}

    def _remove_policy(self, id: str) -> Json:
        if id not in self.policies:
            raise RefusalError("NotFound", f"there is no policy {id}")
        del self.policies[id]
        return {}

    def _query_sas(self, sas: list[Json] | None = None) -> Json:
        names = [*self.sas] if sas is None else [self._find(named) for named in sas]
        return {"sas": [self._counters(name) for name in names]}

    def _counters(self, name: Name) -> Json:
        sa = self.sas[name]
        counted = {"bytes": 0, "packets": 0, "seq": 0, "last_use_s": None, "expired": False}
        where = {"remote": sa["remote"], "remote_port": sa["remote_port"]}
        named = {"direction": name[0], "spi": name[1]}
        return {**named, **counted, **where, **self.counters.get(name, {})}
