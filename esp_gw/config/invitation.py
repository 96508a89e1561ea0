"""A tunnel in one line of text, for the other end to take: `esp-gw invite` and `esp-gw join`.

    espgw1.BODY     JSON and the first bytes of its SHA-256, for a line that was cut
    espgw1s.BODY    salt, nonce and the JSON, sealed by AES-256-GCM under scrypt of a passphrase

BODY is base64url without padding (RFC 4648 5). The keys are in it. It names values, never text of a
configuration: whoever takes it trusts its sender with a tunnel, and with nothing else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from esp_gw.config.offer import End, Offer, Terms, Way
from esp_gw.errors import EspGwError
from esp_gw.model import Encapsulation, IPNetwork, KeyMaterial, Mode, Suite
from esp_gw.protocol import MAX_SPI
from esp_gw.values import (
    FieldError,
    parse_integer,
    parse_liveness,
    parse_name,
    parse_prefix,
    parse_remote,
    parse_sa_count,
    parse_spi,
    parse_suite,
)

PLAIN, SEALED = "espgw1.", "espgw1s."
MAX_LEN = 16384
"""Characters of an invitation."""
_CHECK_LEN = 6
_SALT_LEN, _NONCE_LEN = 16, 12
_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 1 << 26, "dklen": 32}


class InvitationError(EspGwError):
    """An invitation that can't be used; no message repeats any of it."""

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what, where="invitation", hint=hint)


def write_invitation(offer: Offer, expires: datetime, passphrase: str | None = None) -> str:
    """Return the text by which the other end of `offer` takes it, with the keys of both ways."""
    content = json.dumps(_values(offer.turned, expires), separators=(",", ":")).encode()
    if passphrase is None:
        return PLAIN + _encode(content + _check(content))
    salt, nonce = secrets.token_bytes(_SALT_LEN), secrets.token_bytes(_NONCE_LEN)
    sealed = AESGCM(_key(passphrase, salt)).encrypt(nonce, content, SEALED.encode())
    return SEALED + _encode(salt + nonce + sealed)


def is_sealed(text: str) -> bool:
    """Return True for an invitation that needs a passphrase."""
    return _bare(text).startswith(SEALED)


def read_invitation(text: str, now: datetime, passphrase: str | None = None) -> Offer:
    """Return the tunnel of an invitation as this end has it; white space in `text` is ignored.

    Raises InvitationError: cut, changed, expired, sealed by another passphrase, of a later version.
    """
    content = _content(_bare(text), passphrase)
    try:
        expires, offer = _offer(json.loads(content))
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, FieldError):
        # Their messages may quote what is secret.
        raise InvitationError(
            "holds something else than an invitation of this version",
            "run 'esp-gw invite' with the same version of esp-gw at both ends",
        ) from None
    if now >= expires:
        raise InvitationError(
            f"has expired on {expires.astimezone():%Y-%m-%d at %H:%M}",
            "run 'esp-gw invite' once more",
        )
    return offer


def _bare(text: str) -> str:
    return "".join(text.split())


def _content(text: str, passphrase: str | None) -> bytes:
    """Return the JSON of an invitation. Raises InvitationError."""
    if len(text) > MAX_LEN or not text.startswith((PLAIN, SEALED)):
        raise InvitationError(
            f"does not begin with {PLAIN} or {SEALED}, or is too long",
            "give the whole line that 'esp-gw invite' has printed",
        )
    cut = InvitationError("is incomplete or was changed", "copy the whole line once more")
    prefix, _, body = text.partition(".")
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise cut from None
    if prefix + "." == PLAIN:
        content, check = raw[:-_CHECK_LEN], raw[-_CHECK_LEN:]
        if len(raw) <= _CHECK_LEN or _check(content) != check:
            raise cut
        return content
    if passphrase is None:
        raise InvitationError("is sealed by a passphrase", "give it with --passphrase-file FILE")
    salt, nonce = raw[:_SALT_LEN], raw[_SALT_LEN : _SALT_LEN + _NONCE_LEN]
    sealed = raw[_SALT_LEN + _NONCE_LEN :]
    if len(nonce) < _NONCE_LEN:
        raise cut
    try:
        return AESGCM(_key(passphrase, salt)).decrypt(nonce, sealed, SEALED.encode())
    except InvalidTag:
        raise InvitationError(
            "can't be opened: another passphrase, or it is incomplete",
            "give the passphrase of 'esp-gw invite' and the whole line",
        ) from None


def _check(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_CHECK_LEN]


def _key(passphrase: str, salt: bytes) -> bytes:
    return hashlib.scrypt(passphrase.encode(errors="surrogateescape"), salt=salt, **_SCRYPT)


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _values(offer: Offer, expires: datetime) -> dict[str, Any]:
    ways = (offer.outbound, offer.inbound)
    ends = (offer.here, offer.there)
    return {
        "expires": int(expires.timestamp()),
        "names": [end.name for end in ends],
        "outer": [str(end.outer) for end in ends],
        "nets": [[str(net) for net in end.nets] for end in ends],
        "suite": offer.terms.suite.name,
        "liveness": offer.terms.liveness,
        "spis": [way.spi for way in ways],
        "keys": [[_encode(keymat.to_bytes()) for keymat in way.keymats] for way in ways],
    }


def _offer(values: dict[str, Any]) -> tuple[datetime, Offer]:
    """Return the end of its validity and the tunnel.

    Raises FieldError, ValueError, TypeError, KeyError: of another form.
    """
    expires = datetime.fromtimestamp(parse_integer(values["expires"], 0, 1 << 37), UTC)
    here, there = (
        End(parse_name(name), parse_remote(outer), tuple(_each(parse_prefix, nets)))
        for name, outer, nets in zip(
            *(_two(values[field]) for field in ("names", "outer", "nets")), strict=True
        )
    )
    suite = parse_suite(values["suite"])
    spis, keys = _two(values["spis"]), _two(values["keys"])
    sas = parse_sa_count(len(keys[0]))
    outbound, inbound = (
        _way(spi, keymats, suite, sas) for spi, keymats in zip(spis, keys, strict=True)
    )
    liveness = parse_liveness(values["liveness"]) or 0
    terms = Terms(Mode.TUNNEL, Encapsulation.UDP, suite, sas, liveness)
    return expires, Offer(here, there, terms, outbound, inbound)


def _way(spi: object, keymats: Sequence[str], suite: Suite, sas: int) -> Way:
    first = parse_spi(spi)
    if len(keymats) != sas or first + sas - 1 > MAX_SPI:
        raise ValueError
    found = [base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) for text in keymats]
    if any(len(raw) != suite.keymat_len for raw in found):
        raise ValueError
    return Way(first, tuple(KeyMaterial.from_bytes(raw) for raw in found))


def _each(parse: Callable[[object], IPNetwork], values: Sequence[object]) -> list[IPNetwork]:
    if not isinstance(values, list) or not values:
        raise TypeError
    return [parse(value) for value in values]


def _two(values: object) -> list[Any]:
    if not isinstance(values, list) or len(values) != 2:
        raise TypeError
    return values
