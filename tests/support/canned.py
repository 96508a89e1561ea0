"""A control server with canned replies for the CLI."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from esp_gw.control.protocol import PREFIX
from esp_gw.control.server import Caller, ControlServer, Handler

SA_OUT: dict[str, Any] = {
    "name": "office/out", "direction": "outbound", "spi": 0x1001, "suite": "aes256gcm16",
    "mode": "tunnel", "encapsulation": "udp", "local": "192.0.2.1", "remote": "198.51.100.7",
    "remote_port": 4500, "local_original": None, "remote_original": None,
    "local_ts": ["10.1.0.0/24"], "remote_ts": ["10.2.0.0/24", "10.3.0.0/24"],
    "esn": True, "replay_window": 1024, "keepalive": 20, "liveness": 0, "origin": "config",
    "tunnel": "office", "pair": "office/in", "lane": 0, "seq": 42, "lease_end": 65536,
    "packets": 41, "bytes": 5_500_000, "drops": {"too-big": 3, "queue-full": 0}, "state": "failing",
    "last_in_s": 3725.2, "last_out_s": 3.9, "causes": ["another key", "silence"],
}  # fmt: skip
SA_IN = SA_OUT | {
    "name": "office/in", "direction": "inbound", "spi": 0xC0FFEE01, "encapsulation": "none",
    "local": "2001:db8::1", "remote": "2001:db8::2", "pair": None, "tunnel": None, "lane": None,
    "keepalive": 0, "liveness": 0, "lease_end": 0, "drops": {}, "bytes": 999, "origin": "cli",
    "state": "up", "last_in_s": 61.0, "last_out_s": None, "causes": [],
}  # fmt: skip
ANY = {"protocol": None, "local_port": None, "remote_port": None}
POLICIES = [
    {"name": "office", "action": "protect", "sas": ["office/out", "office/out.2"],
     "tunnel": "office", "origin": "config", "selectors": [
         {"local": "10.1.0.0/24", "remote": "10.2.0.0/24", **ANY},
         {"local": "10.1.0.0/24", "remote": "10.3.0.0/24", **ANY}]},
    {"name": "no-smtp", "action": "discard", "sas": [], "tunnel": None, "origin": "cli",
     "selectors": [{"local": "0.0.0.0/0", "remote": "10.9.0.0/16", "protocol": 6,
                    "local_port": None, "remote_port": "25"}]},
]  # fmt: skip
OFFLOAD = {
    "tso": {"in_use": False, "why": "switched off"},
    "uso": {"in_use": False, "why": "switched off"},
    "udp_gso": {"in_use": True, "why": "refused for 192.0.2.2 (EIO)"},
    "merge": {"in_use": True, "why": ""},
}
AF_ALG = {
    "aes256gcm16": {"in_use": True, "why": "it takes half as long", "library": "openssl",
                    "library_ns": [2.0, 4.0, 6.0], "af_alg_ns": [1.0, 2.0, 3.0]},
    "aes256gcm8": {"in_use": False, "why": "it is slower", "library": "", "library_ns": [],
                   "af_alg_ns": []},
    "aes128gcm8": {"in_use": False, "why": "it is slower", "library": "", "library_ns": [],
                   "af_alg_ns": []},
}  # fmt: skip
REPLIES: dict[str, dict[str, object]] = {
    "GetStatus": {"version": "0.1.0", "engine": "python", "interface": "esp0", "pid": 7,
                  "uptime_s": 7384.2, "mtu": 1400, "sas": 2, "policies": 2, "tunnels": 1,
                  "states": {"up": 2, "quiet": 0, "down": 0, "failing": 1}, "children": [],
                  "ledger": "/var/lib/esp-gw/ledger.db", "warnings": ["rp_filter drops\x1b[2J"],
                  "config": "/etc/esp-gw", "workers": 2, "pinned": True,
                  "latency": {"setting": "low", "held": True, "rest_ms": 40, "why": ""},
                  "provider": {"aes256gcm8": "OpenSSL 3.6.0", "aes256gcm16": "AWS-LC 5.12.0"},
                  "aes": "AES-NI, AVX2", "offload": OFFLOAD, "af_alg": AF_ALG,
                  "lanes": {"steered": True, "listed": 4, "laned": 4, "limit": 400,
                            "refused": None, "priority": -11, "priority_refused": None}},
    "ListSas": {"sas": [SA_OUT, SA_IN]},
    "GetSa": {"sa": SA_OUT},
    "AddSa": {"sa": SA_OUT},
    "DeleteSa": {},
    "FlushSas": {"deleted": ["a", "b"]},
    "ListPolicies": {"policies": POLICIES},
    "AddPolicy": {"policy": POLICIES[1]},
    "AddTunnel": {},
    "SetTunnel": {},
    "DeleteTunnel": {},
    "DeletePolicy": {},
    "ListTunnels": {"tunnels": [
        {"name": "office", "origin": "config", "mode": "tunnel", "encapsulation": "udp",
         "suite": "aes256gcm16", "local": "192.0.2.1",
         "remote": "198.51.100.7", "remote_port": 4501,
         "local_ts": ["10.1.0.0/24"], "remote_ts": ["10.2.0.0/24"],
         "sas": ["office/out", "office/in", "office/out.2", "office/in.2"],
         "lanes": [{"sa": "office/out", "flows": 3}, {"sa": "office/out.2", "flows": 1}],
         "state": "up", "last_in_s": 2.5, "last_out_s": None, "causes": [],
         "packets_out": 1, "bytes_out": 2048, "packets_in": 2, "bytes_in": 100, "drops": {}}]},
    "GetStats": {"packets_out": 10, "bytes_out": 1536, "packets_in": 20, "bytes_in": 30,
                 "keepalives_out": 4, "keepalives_in": 5, "drops": {"no-sa": 6, "dummy": 0},
                 "bulk_on_lane0": 0, "sas": {},
                 "lanes": {"office": [{"sa": "office/out", "flows": 3},
                                      {"sa": "office/out.2", "flows": 1}]}},
    "ListEvents": {"events": [
        {"number": 7, "time": 0.0, "tunnel": "office", "before": "quiet", "state": "failing",
         "cause": "another key", "drops": "auth-failed 3"},
        {"number": 8, "time": 60.0, "tunnel": "office", "before": "failing", "state": "up",
         "cause": None, "drops": ""}], "last": 8},
    "Explain": {
        "source": "10.1.0.5", "destination": "10.2.0.7", "protocol": 6, "source_port": None,
        "destination_port": 443, "verdict": "stopped", "directions": ["outbound"],
        "policy": "office", "tunnel": "office", "sas": ["office/out"], "mtu": 1422,
        "steps": [
            {"what": "policy", "state": "ok", "found": "office: protect", "todo": ""},
            {"what": "forward", "state": "stop", "found": "ip_forward is 0",
             "todo": "run 'sysctl -w net.ipv4.ip_forward=1'"}]},
    "ExplainDrops": {
        "tunnels": [{"tunnel": "office", "state": "failing", "causes": ["another key"], "drops": [
            {"reason": "auth-failed", "count": 12, "packets": "have a wrong ICV",
             "cause": "another key", "todo": "compare the keys", "seen": "from 192.0.2.2"}]}],
        "others": [{"reason": "no-policy", "count": 1, "packets": "match no policy",
                    "cause": "a source outside", "todo": "", "seen": None}]},
    "CheckReload": {"changes": ["remote_ts of office: + 10.3.0.0/24"]},
    "Reload": {"changes": ["added SA office/out", "removed policy old"]},
}  # fmt: skip


class Gateway:
    """A control server with canned replies, in a thread, that records requests."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replies: dict[str, dict[str, object] | Exception] = dict(REPLIES)
        self.asked: list[tuple[str, dict[str, object]]] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Gateway:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = ControlServer(self.path, {PREFIX + name: self._handler(name) for name in REPLIES})
        await server.start()
        self._ready.set()
        await self._stop.wait()
        await server.close()

    def _handler(self, name: str) -> Handler:
        async def answer(parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
            self.asked.append((name, parameters))
            reply = self.replies[name]
            if isinstance(reply, Exception):
                raise reply
            return reply

        return answer
