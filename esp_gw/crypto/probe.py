"""Decision on the use of AF_ALG: is it available, is it correct, is it faster.

The probe makes the kernel load its module, as the use by any program would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esp_gw.crypto import af_alg
from esp_gw.crypto.aead import Aead, AfAlgStatus
from esp_gw.crypto.measure import BRIEF, Measured, Sealer, cells, measure_cells
from esp_gw.crypto.recommend import SIZES
from esp_gw.errors import EngineError
from esp_gw.model import (
    AES_GCM,
    AES_GMAC,
    AF_ALG,
    AF_ALG_OFF,
    AF_ALG_ON,
    CHACHA20_POLY1305,
    DEFAULT_SUITE,
    SUITES,
    KeyMaterial,
    Suite,
)

_FORCED = "switched on"
_WORTH_IT = 0.9
"""Ratio of times below which AF_ALG counts as faster: so short a measurement shows no less."""

_NONCE = b"salt" + bytes(range(8))
_AAD = b"SPI.seq."
_PLAINTEXT = b"an ESP packet's text"
# Known answers by cipher and key length in bytes. Key bytes are 1, 2, 3, ...; a shorter ICV is a
# prefix of this one.
_SEALED = {
    (AES_GCM, 32): "671317f0914184455b4204d1ee48a82faaa389d35bca55a4af34754c7ce1d0e0289a51f9",
    (AES_GCM, 24): "03db79480d19feb37bd839f24456f8ffc8530c7fa9f4fa3b49e86e181b45e365cb9627eb",
    (AES_GCM, 16): "6a475164b571dc08dc3b8c01b95d87ce74f6b808ff4a1fc101b7637cfd71469f41e3631b",
    (CHACHA20_POLY1305, 32): (
        "84815bb3ffeedde1e056dde7dbaf13d3417a8f23db14244f55209258fe12eadeb009340b"
    ),
    (AES_GMAC, 32): "616e20455350207061636b657427732074657874a149f3629219d196995528b408e548ac",
}


def choose(wanted: str, sealer: Sealer) -> dict[str, AfAlgStatus]:
    """Decide on the use of AF_ALG for each suite, with `crypto.offload` set to `wanted`.

    With `auto`, AF_ALG is used if it gives the known answers and is faster than the library of
    `sealer`: for full packets, and for one packet of each of SIZES together. Raises EngineError if
    it is `on` and available for no suite.
    """
    if wanted == AF_ALG_OFF:
        return dict.fromkeys(SUITES, AfAlgStatus(False, "switched off"))
    faults = find_faults()
    if wanted == AF_ALG_ON:
        if len(faults) == len(SUITES):
            raise unavailable(faults[DEFAULT_SUITE.name])
        return {name: AfAlgStatus(name not in faults, faults.get(name, _FORCED)) for name in SUITES}
    # A shorter ICV costs as much as the full one: it is only truncated.
    kin = {
        suite.name: _with_full_icv(suite).name
        for suite in SUITES.values()
        if suite.name not in faults
    }
    measured = _measured(sorted(set(kin.values())), sealer) if kin else {}
    return {
        name: AfAlgStatus(False, faults[name]) if name in faults else measured[kin[name]]
        for name in SUITES
    }


def unavailable(why: str) -> EngineError:
    """The error if `crypto.offload` is on and AF_ALG is unavailable."""
    return EngineError(
        f"crypto.offload is on, but AF_ALG is unavailable: {why}",
        hint="set 'crypto.offload: auto', or see 'esp-gw doctor'",
    )


def without(statuses: Mapping[str, AfAlgStatus], why: str) -> dict[str, AfAlgStatus]:
    """Return the statuses after a failure of AF_ALG at run time."""
    lost = AfAlgStatus(False, f"lost while the gateway ran: {why}")
    return {name: lost if status.in_use else status for name, status in statuses.items()}


def find_faults() -> dict[str, str]:
    """Return the reason that AF_ALG can't be used, for each such suite by name."""
    faults: dict[str, str] = {}
    missing: dict[str, str] = {}
    for suite in SUITES.values():
        name = af_alg.algorithm(suite)
        try:
            # The kernel starts modprobe on each request for an algorithm that it lacks.
            why = missing.get(name) or _fault(suite)
        except af_alg.MissingError as error:
            why = missing[name] = str(error)
        if why is not None:
            faults[suite.name] = why
    return faults


def _fault(suite: Suite) -> str | None:
    """The reason that AF_ALG can't be used for a suite, or None. Raises MissingError."""
    key = KeyMaterial(bytes(range(1, suite.key_len + 1)), _NONCE[:4])
    right = bytes.fromhex(_SEALED[suite.cipher, suite.key_len])[: len(_PLAINTEXT) + suite.icv_len]
    try:
        aead = af_alg.make_aead(suite, key)
    except af_alg.MissingError:
        raise
    except af_alg.AfAlgError as error:
        return str(error)
    try:
        if not _knows_the_answers(aead, right):
            return f"the kernel's {af_alg.algorithm(suite)} gives wrong answers"
        if not _refuses_forged(aead, right):
            return f"the kernel's {af_alg.algorithm(suite)} accepts a forged packet"
    except af_alg.AfAlgError as error:
        return str(error)
    finally:
        aead.close()
    return None


def _knows_the_answers(aead: Aead, right: bytes) -> bool:
    sealed = memoryview(bytearray(len(right)))
    opened = memoryview(bytearray(len(_PLAINTEXT)))
    aead.seal_into(_NONCE, _PLAINTEXT, _AAD, sealed)
    try:
        aead.open_into(_NONCE, right, _AAD, opened)
    except aead.authentication_error:
        return False
    return sealed == right and opened == _PLAINTEXT


def _refuses_forged(aead: Aead, right: bytes) -> bool:
    forged = right[:-1] + bytes((right[-1] ^ 1,))
    try:
        aead.open_into(_NONCE, forged, _AAD, memoryview(bytearray(len(_PLAINTEXT))))
    except aead.authentication_error:
        return True
    return False


def _with_full_icv(suite: Suite) -> Suite:
    return next(
        kin
        for kin in SUITES.values()
        if (kin.cipher, kin.key_len) == (suite.cipher, suite.key_len) and kin.icv_len == 16
    )


def _measured(suites: Sequence[str], sealer: Sealer) -> dict[str, AfAlgStatus]:
    """Compare AF_ALG with the provider that would seal a suite without it, in turn."""
    ways = [
        way for suite in suites for way in ((sealer.provider_of(suite), suite), (AF_ALG, suite))
    ]
    found = measure_cells(sealer.measure(), cells(ways), BRIEF)
    return {suite: compared(found, sealer.provider_of(suite), suite) for suite in suites}


def compared(found: Measured, library: str, suite: str) -> AfAlgStatus:
    """Decide from measurements on the use of AF_ALG for a suite, with a margin."""
    for way in ((AF_ALG, suite), (library, suite)):
        if way in found.missing:
            return AfAlgStatus(False, found.missing[way])
    ours, theirs = (
        tuple(found.ns[provider, suite, size] for size in SIZES) for provider in (library, AF_ALG)
    )
    # Most packets are full, and every other one of them has a small reply.
    faster = all(
        new < _WORTH_IT * old for new, old in ((sum(theirs), sum(ours)), (theirs[-1], ours[-1]))
    )
    why = (
        f"AF_ALG takes {_listed(theirs)} us, {library} {_listed(ours)} us for "
        f"{'/'.join(map(str, SIZES))} bytes"
    )
    return AfAlgStatus(faster, why, library, ours, theirs)


def _listed(times: Sequence[float]) -> str:
    return "/".join(f"{nanoseconds / 1000:.1f}" for nanoseconds in times)
