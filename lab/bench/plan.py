"""The plan of a run: sections of subjects, their rounds, and the estimated duration."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from esp_gw.desired import Offloads
from esp_gw.errors import LabError
from esp_gw.model import SUITES, Encapsulation, Mode
from lab.bench.charon import CHILDREN, EspGwIke, strongswan
from lab.bench.gateways import EspGw, default_sas, earlier_version, null_cipher
from lab.bench.measures import IKE_TESTS, TESTS
from lab.bench.model import Lengths, Opener, Subject
from lab.bench.systems import openvpn, veth
from lab.bench.tunnels import EspGwTunnels
from lab.bench.wireguard import Wireguard

QUICK = Lengths(tcp=1, udp=1, pings=100, probes=2, idle=10, children=20)
FULL = Lengths(tcp=2, udp=1, pings=200, probes=3, idle=15, children=CHILDREN)

BASELINE = "baseline"
"""The native engine of another checkout, given by --baseline."""
NATIVE_IKE = "native-ike"
"""The native engine with keys by charon."""
SYSTEMS = (
    *("veth", "native", NATIVE_IKE, BASELINE, "python"),
    *("strongswan", "wireguard-go", "gotatun", "openvpn"),
)
WITH_IKE = ("tcp", "tcp_wire", "tcp_reverse", "rtt", "memory")
"""Tests of NATIVE_IKE beside the other systems: the data path is that of `native`."""
PEERS = ("strongswan", "wireguard-go", "gotatun", "openvpn")
SYSTEM_TESTS = tuple(name for name in TESTS if name not in ("idle", "tcp_tunnels", *IKE_TESTS))
TWO_TUNNELS = "{}-2-tunnels"
SWITCHES = tuple(switch.name for switch in fields(Offloads))
SMALL_GSO_MAX_SIZE = 61_000
"""Bytes; a super-packet of this size fits into one send, one of 65,536 bytes does not."""

SECTIONS = {
    "systems": "every system, every test",
    "idle": "gateways without traffic",
    "ike": "keys by IKE: first packet, rekeys, many children",
    "tunnels": "four TCP streams through two tunnels",
    "techniques": "the native engine with each technique switched off",
    "providers": "the native engine with each AEAD library",
    "suites": "suites and modes, and a build without the cipher",
    "scale": "2, 100 and 10,000 SAs",
    "core": "the core alone, without the kernel",
}
_SETUP = {
    **{"strongswan": 1.5, "openvpn": 3.0, "wireguard-go": 1.0, "gotatun": 1.0, "veth": 0.3},
    NATIVE_IKE: 2.5,
}
_SCALE_SETUP = 60.0
_SCALE_TURN = 10.0
_CORE = 105.0
_QUICK_CORE = 35.0


@dataclass(frozen=True, slots=True)
class Section:
    """Subjects compared with each other, and the number of rounds."""

    name: str
    subjects: tuple[Subject, ...]
    rounds: int


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the command line; None or an empty collection selects everything.

    `wireguard_go` and `gotatun` are the binaries to measure. `null_cipher` is a folder with the
    native engine built without a cipher, None if there is no such build. `baseline` is a checkout
    of an earlier version with its native engine, measured beside this one. `ike_plugin` is charon's
    plugin, None the installed one.
    """

    quick: bool = False
    rounds: int | None = None
    sections: Collection[str] = ()
    systems: Collection[str] = ()
    tests: Collection[str] = ()
    wireguard_go: str = "wireguard-go"
    gotatun: str = "gotatun"
    null_cipher: Path | None = None
    baseline: Path | None = None
    ike_plugin: Path | None = None
    native: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """The sections measured in rounds, the rounds of scale, and the seconds of core."""

    rounds: int
    lengths: Lengths
    sections: tuple[Section, ...]
    scale_rounds: int
    core_seconds: float

    def turns(self) -> Iterator[tuple[int, Section, Subject]]:
        """Every turn in order: each subject once per round."""
        for number in range(self.rounds):
            for section in self.sections:
                if number < section.rounds:
                    for subject in section.subjects:
                        yield number, section, subject

    @property
    def seconds(self) -> float:
        """Estimated duration of the run, in seconds."""
        total = sum(turn_seconds(subject, self.lengths) for _, _, subject in self.turns())
        if self.scale_rounds:
            total += _SCALE_SETUP + self.scale_rounds * _SCALE_TURN
        return total + self.core_seconds


def turn_seconds(subject: Subject, lengths: Lengths) -> float:
    """Estimated duration of one turn of a subject, in seconds."""
    return subject.setup + sum(TESTS[test].seconds(lengths) for test in subject.tests)


def make_plan(options: Options) -> Plan:
    """Expand the options into a plan. Raises LabError if nothing is left to measure."""
    rounds = options.rounds or (2 if options.quick else 5)
    few = min(rounds, 1 if options.quick else 3)
    subjects = {
        "systems": (_systems(options, SYSTEM_TESTS), rounds),
        "idle": (_systems(options, ("idle",))[: 3 if options.quick else None], 1),
        "ike": (tuple(_ike(options)), few),
        "tunnels": (tuple(_tunnels(options)), rounds),
        "techniques": (tuple(_techniques()), few),
        "providers": (tuple(_providers()), few),
        "suites": (tuple(_suites(options.null_cipher)), few),
    }
    known = {subject.system for found, _ in subjects.values() for subject in found}
    for name in options.systems:
        if name not in known:
            raise LabError(f"no system is called '{name}'", hint=f"there are {_listed(known)}")
    wanted = set(options.sections or SECTIONS)
    sections = [
        Section(name, kept, count)
        for name, (found, count) in subjects.items()
        if name in wanted and (kept := tuple(_only(found, options, name)))
    ]
    narrowed = bool(options.systems or options.tests)
    has_scale = "scale" in wanted and options.native and not narrowed
    has_core = "core" in wanted and options.native and not narrowed
    if not sections and not has_scale and not has_core:
        raise LabError("nothing to measure", hint="give fewer of --only, --system and --test")
    return Plan(
        rounds=max((section.rounds for section in sections), default=few),
        lengths=QUICK if options.quick else FULL,
        sections=tuple(sections),
        scale_rounds=few if has_scale else 0,
        core_seconds=has_core * (_QUICK_CORE if options.quick else _CORE),
    )


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names, key=lambda name: (name not in SYSTEMS, name)))


def _only(subjects: tuple[Subject, ...], options: Options, section: str) -> Iterator[Subject]:
    """The requested subjects, each with only the requested tests."""
    for subject in subjects:
        is_native = subject.system.split("-")[0] in ("native", BASELINE)
        if is_native and not options.native:
            continue
        if options.systems and (subject.system not in options.systems):
            continue
        tests = subject.tests
        if options.tests:
            tests = tuple(test for test in tests if test in options.tests)
        if tests:
            yield replace(subject, tests=tests)


def _systems(options: Options, tests: tuple[str, ...]) -> tuple[Subject, ...]:
    openers: dict[str, Opener] = {
        "veth": veth,
        "native": EspGw("native"),
        NATIVE_IKE: EspGwIke("native", options.ike_plugin),
    }
    if options.baseline is not None:
        # As before there were lanes.
        env = earlier_version(options.baseline.absolute())
        openers[BASELINE] = EspGw("native", sas=1, env=env)
    openers |= {
        "python": EspGw("python"),
        "strongswan": strongswan,
        "wireguard-go": Wireguard(_wireguard_go(options)),
        "gotatun": Wireguard(_gotatun(options)),
        "openvpn": openvpn,
    }
    left_out = {"veth": {"memory", "idle"}, NATIVE_IKE: {*tests} - {*WITH_IKE}}
    return tuple(
        Subject(
            name,
            tuple(test for test in tests if test not in left_out.get(name, ())),
            opener,
            _SETUP.get(name, 2.0),
        )
        for name, opener in openers.items()
    )


def _ike(options: Options) -> Iterator[Subject]:
    yield Subject(NATIVE_IKE, IKE_TESTS, EspGwIke("native", options.ike_plugin), _SETUP[NATIVE_IKE])
    yield Subject("strongswan", IKE_TESTS, strongswan, _SETUP["strongswan"])


def _wireguard_go(options: Options) -> tuple[str, ...]:
    return (options.wireguard_go, "-f")


def _gotatun(options: Options) -> tuple[str, ...]:
    # To drop privileges it asks for the name of the login session, and ends where there is none.
    return (options.gotatun, "-f", "--disable-drop-privileges")


def _tunnels(options: Options) -> Iterator[Subject]:
    for name, opener in (
        ("native", EspGwTunnels("native", 2, default_sas())),
        ("wireguard-go", Wireguard(_wireguard_go(options), tunnels=2)),
    ):
        yield Subject(TWO_TUNNELS.format(name), ("tcp_tunnels",), opener)


def _off(*switches: str) -> dict[str, object]:
    return {"offload": dict.fromkeys(switches, False)}


def _techniques() -> Iterator[Subject]:
    raw = Encapsulation.NONE
    settings: Mapping[str, EspGw] = {
        "all": EspGw("native"),
        **{f"no-{switch}": EspGw("native", settings=_off(switch)) for switch in SWITCHES},
        "no-vnet": EspGw("native", settings=_off("tso", "uso", "merge")),
        "no-gso-gro": EspGw("native", settings=_off("udp_gso", "udp_gro")),
        "none": EspGw("native", settings=_off(*SWITCHES)),
        "gso-max-size": EspGw("native", gso_max_size=SMALL_GSO_MAX_SIZE),
        "esp": EspGw("native", encapsulation=raw),
        "esp-none": EspGw("native", encapsulation=raw, settings=_off(*SWITCHES)),
    }
    for name, opener in settings.items():
        yield Subject(f"native-{name}", ("tcp",), opener)
    one = EspGw("native", sas=1)
    yield Subject("native-1-sa", ("tcp", "tcp_wire", "rtt", "rtt_loaded"), one)
    chosen_settings: Mapping[str, Mapping[str, object]] = {
        "1-worker": {"workers": 1},
        "4-workers": {"workers": 4},
        "pinned": {"pin_workers": True},
        "low-latency": {"latency": "low"},
    }
    for name, chosen in chosen_settings.items():
        yield Subject(f"native-{name}", ("tcp", "rtt", "memory"), EspGw("native", settings=chosen))


def _providers() -> Iterator[Subject]:
    for name in ("openssl", "aws-lc"):
        opener = EspGw("native", crypto={"provider": name})
        yield Subject(f"native-{name}", ("tcp", "tcp_wire"), opener)


SUITE_NAMES = ("aes256gcm16", "aes128gcm16", "chacha20poly1305", "aes256gmac")
NULL = "null"
"""Placeholder for AES-256-GCM with the cipher left out."""
SUITE_LABELS = {name: name for name in SUITE_NAMES} | {NULL: "aes256gcm16, cipher left out"}
BASELINE_SUITES = ("aes256gmac", "aes256gcm16")
"""The suites of the NetDev 1.1 table: authenticated only, and AES-GCM-256."""


def suite_system(suite: str, mode: str, *, plain: bool = False) -> str:
    """The name of a suite and mode in the results; `plain`: without any offload."""
    return f"native-{suite}-{mode}{'-none' if plain else ''}"


def _suites(extension: Path | None) -> Iterator[Subject]:
    for mode in Mode:
        for name in SUITE_NAMES:
            opener = EspGw("native", mode=mode, suite=SUITES[name])
            yield Subject(suite_system(name, mode), ("tcp",), opener)
            if name in BASELINE_SUITES:
                opener = replace(opener, settings=_off(*SWITCHES))
                yield Subject(suite_system(name, mode, plain=True), ("tcp",), opener)
        if extension is not None:
            opener = EspGw("native", mode=mode, env=null_cipher(extension))
            yield Subject(suite_system(NULL, mode), ("tcp",), opener)
