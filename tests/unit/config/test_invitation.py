"""Invitations: the tunnel that comes out is the one that went in, or nothing does."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp_gw.config.invitation import (
    PLAIN,
    SEALED,
    InvitationError,
    is_sealed,
    read_invitation,
    write_invitation,
)
from esp_gw.config.offer import End, Offer, Terms, draw
from esp_gw.model import ANY, SUITES, Encapsulation, Mode

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=24)
PASSPHRASE = "correct horse"


def offer(suite: str = "aes256gcm16", sas: int = 2) -> Offer:
    here = End("a", "gw.example", (ip_network("10.1.0.0/24"), ip_network("fd00:1::/64")))
    there = End("b", ANY, (ip_network("10.2.0.0/24"),))
    return draw(here, there, Terms(Mode.TUNNEL, Encapsulation.UDP, SUITES[suite], sas))


def forged(values: object) -> str:
    """An invitation with a right check of any JSON."""
    content = json.dumps(values).encode()
    body = content + hashlib.sha256(content).digest()[:6]
    return PLAIN + base64.urlsafe_b64encode(body).decode().rstrip("=")


def values_of(text: str) -> dict[str, Any]:
    body = text.removeprefix(PLAIN)
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))[:-6])


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
@pytest.mark.parametrize("suite", sorted(SUITES))
def test_the_other_end_has_the_same_tunnel_turned(suite: str, passphrase: str | None) -> None:
    made = offer(suite)
    text = write_invitation(made, LATER, passphrase)
    assert is_sealed(text) is (passphrase is not None)
    # Wrapped by a terminal, or pasted with spaces.
    wrapped = "\n ".join(text[i : i + 60] for i in range(0, len(text), 60))
    found = read_invitation(f" {wrapped}\n", NOW, passphrase)
    assert (found.outbound, found.inbound) == (made.inbound, made.outbound)
    assert found.terms == made.terms
    for end, other in ((found.here, made.there), (found.there, made.here)):
        assert (end.name, end.outer, end.nets) == (other.name, other.outer, other.nets)


def test_an_address_stays_an_address() -> None:
    made = offer()
    here = End("a", ip_address("2001:db8::1"), made.here.nets)
    text = write_invitation(Offer(here, made.there, made.terms, made.outbound, made.inbound), LATER)
    assert read_invitation(text, NOW).there.outer == ip_address("2001:db8::1")


def test_it_expires() -> None:
    text = write_invitation(offer(), LATER)
    assert read_invitation(text, LATER - timedelta(seconds=1))
    with pytest.raises(InvitationError, match="expired"):
        read_invitation(text, LATER)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_one_that_was_cut_or_changed_is_refused_without_a_word_of_it(
    passphrase: str | None,
) -> None:
    text = write_invitation(offer(sas=1), LATER, passphrase)
    prefix = len(text.partition(".")[0]) + 1
    step = 1 if passphrase is None else 97
    changed = [text[:end] for end in range(0, len(text), step)]
    changed += [
        text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        for place in range(prefix, len(text) - 1, step)
    ]
    for each in changed:
        with pytest.raises(InvitationError) as caught:
            read_invitation(each, NOW, passphrase)
        assert text[prefix + 20 : prefix + 60] not in str(caught.value)


def test_a_sealed_one_needs_its_passphrase() -> None:
    text = write_invitation(offer(), LATER, PASSPHRASE)
    with pytest.raises(InvitationError, match="--passphrase-file"):
        read_invitation(text, NOW)
    with pytest.raises(InvitationError, match="another passphrase"):
        read_invitation(text, NOW, "correct horse ")
    # The keys of two with one passphrase differ.
    assert (
        text.removeprefix(SEALED)[:20]
        != (write_invitation(offer(), LATER, PASSPHRASE).removeprefix(SEALED)[:20])
    )


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["a", "../b"]},
        {"names": ["a"]},
        {"outer": ["any", "192.0.2.300"]},
        {"outer": [None, "192.0.2.1"]},
        {"nets": [[], ["10.1.0.0/24"]]},
        {"nets": [["10.1.0.0/24"], ["10.1.0.1/24"]]},
        {"nets": ["10.1.0.0/24", "10.2.0.0/24"]},
        {"suite": "none"},
        {"suite": ["aes256gcm16"]},
        {"liveness": -1},
        {"spis": [1, 2]},
        {"spis": [2**32 - 1, 4096]},
        {"keys": [["AAAA"], ["AAAA"]]},
        {"keys": [[], []]},
        {"keys": [5, 6]},
        {"expires": "soon"},
        {"expires": -1},
        {"expires": True},
        {"expires": 1 << 80},
    ],
)
def test_values_of_another_form_are_refused(change: dict[str, Any]) -> None:
    values = values_of(write_invitation(offer(), LATER))
    with pytest.raises(InvitationError, match="something else"):
        read_invitation(forged({**values, **change}), NOW)


@settings(max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=12,
    )
)
def test_any_other_json_is_refused(values: object) -> None:
    with pytest.raises(InvitationError):
        read_invitation(forged(values), NOW)


@settings(max_examples=200)
@given(st.text() | st.text().map(PLAIN.__add__) | st.text().map(SEALED.__add__))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvitationError):
        read_invitation(text, NOW, PASSPHRASE)
