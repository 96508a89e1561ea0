"""The ESP codec: encap and decap of one packet (RFC 4303, RFC 4106)."""

from __future__ import annotations

import struct
from collections import deque
from contextlib import suppress

from esp_gw.crypto.aead import Aead
from esp_gw.engine.python.drop import AuthenticDrop, Drop
from esp_gw.engine.python.replay import ReplayWindow
from esp_gw.errors import EngineError
from esp_gw.model import DropReason, Lease, Sa
from esp_gw.protocol import IV_LEN, NO_NEXT_HEADER, TEXT_OFFSET, TRAILER_LEN

_SEQ_LO_MASK = 2**32 - 1

_HEADER_AND_IV = struct.Struct("!IIQ")
_SPI_SEQ_LO_AND_IV = struct.Struct("!II8s")
_AAD = struct.Struct("!II")
_AAD_ESN = struct.Struct("!IQ")

# RFC 4303 2.4: the padding is 1, 2, 3, ...
_PADDING = tuple(bytes(range(1, pad_len + 1)) for pad_len in range(256))
# ESP trailers (padding, pad_len, next_header), indexed by payload_len % 4 and next_header.
_TRAILERS = tuple(
    tuple(_PADDING[pad_len] + bytes((pad_len, next_header)) for next_header in range(256))
    for pad_len in (-(remainder + TRAILER_LEN) % 4 for remainder in range(4))
)


class OutboundEsp:
    """Encapsulates the packets of one outbound SA.

    The 64-bit sequence number is the IV, so no number may be used twice: each comes from a lease
    and is consumed before its packet is sealed, even if sealing or sending then fails. `next_seq`
    is the next packet's number; `lease_end` is the first number past those usable now. Once
    `next_seq >= low`, half of the numbers that the SA held after its last extension are used.
    Raises EngineError for a lease that has the number 0 or ends before it begins.
    """

    __slots__ = (
        "_last_seq",
        "_later",
        "_overhead",
        "_pack_aad",
        "_salt",
        "_seal_into",
        "_spi",
        "lease_end",
        "low",
        "next_seq",
    )

    def __init__(self, sa: Sa, lease: Lease, aead: Aead) -> None:
        if lease.first < 1:
            raise EngineError(f"{sa.name}: a lease can't begin at {lease.first}, the first is 1")
        self._salt = sa.keymat.salt
        self._overhead = TEXT_OFFSET + sa.suite.icv_len
        self._seal_into = aead.seal_into
        self._set(sa)
        self._later: deque[Lease] = deque()
        self.next_seq = self.lease_end = min(lease.first, self._last_seq + 1)
        self.extend(lease)

    def become(self, sa: Sa) -> None:
        """Seal for an SA with the same key from the next packet on, and go on counting.

        Leased numbers past its last one are given up. `lease_end` never falls below `next_seq`,
        so that no later lease brings back a number that is used.
        """
        self._set(sa)
        self.lease_end = min(self.lease_end, max(self._last_seq + 1, self.next_seq))
        usable = [lease for lease in self._later if lease.first <= self._last_seq]
        self._later = deque(self._up_to_last(lease) for lease in usable)

    def _set(self, sa: Sa) -> None:
        self._spi = sa.spi
        self._last_seq = sa.last_seq
        self._pack_aad = _AAD_ESN.pack if sa.esn else _AAD.pack

    def _up_to_last(self, lease: Lease) -> Lease:
        bound = max(self._last_seq + 1, self.lease_end)
        return Lease(min(lease.first, bound), min(lease.end, bound))

    def extend(self, lease: Lease) -> None:
        """Add the numbers of a lease that begins where the previous one ends, or later.

        Numbers past the SA's last sequence number are left out. Raises EngineError for a lease
        that ends before it begins, or that begins before the end of an earlier one.
        """
        leased_up_to = self._later[-1].end if self._later else self.lease_end
        if not leased_up_to <= lease.first <= lease.end:
            raise EngineError(
                f"the lease of {lease.first} up to {lease.end} goes back: "
                f"sequence numbers up to {leased_up_to} are leased already"
            )
        usable = self._up_to_last(lease)
        if usable.first == self.lease_end and not self._later:
            self.lease_end = usable.end
        else:
            self._later.append(usable)
        self.low = self._half_used()

    def encap(
        self, buf: memoryview, start: int, end: int, next_header: int, out: memoryview
    ) -> int:
        """Encapsulate the payload `buf[start:end]` as one ESP packet in `out`; return its length.

        The trailer is written into `buf` after the payload, which needs 8 spare bytes at most.
        `out` has `Suite.esp_len` bytes or more and does not overlap `buf`. Raises
        Drop(LEASE_EXHAUSTED) or Drop(SEQ_EXHAUSTED). RFC 4303 3.3, RFC 4106 3 to 5, RFC 7634 2.
        """
        seq = self.next_seq
        if seq >= self.lease_end:
            seq = self._next_lease()
        self.next_seq = seq + 1
        trailer = _TRAILERS[(end - start) & 3][next_header]
        text_end = end + len(trailer)
        buf[end:text_end] = trailer
        length = text_end - start + self._overhead
        _HEADER_AND_IV.pack_into(out, 0, self._spi, seq & _SEQ_LO_MASK, seq)
        self._seal_into(
            self._salt + seq.to_bytes(IV_LEN, "big"),
            buf[start:text_end],
            self._pack_aad(self._spi, seq),
            out[TEXT_OFFSET:length],
        )
        return length

    def _next_lease(self) -> int:
        while self.next_seq >= self.lease_end:
            if self.lease_end > self._last_seq:
                raise Drop(DropReason.SEQ_EXHAUSTED)
            if not self._later:
                raise Drop(DropReason.LEASE_EXHAUSTED)
            lease = self._later.popleft()
            self.next_seq = lease.first
            self.lease_end = lease.end
        return self.next_seq

    def _half_used(self) -> int:
        leases = (Lease(self.next_seq, self.lease_end), *self._later)
        half = sum(lease.end - lease.first for lease in leases) // 2
        for lease in leases:
            if half < lease.end - lease.first:
                return lease.first + half
            half -= lease.end - lease.first
        return self.next_seq


class InboundEsp:
    """Decapsulates the packets of one inbound SA; `window` is its anti-replay window."""

    __slots__ = (
        "_authentication_error",
        "_esn",
        "_min_len",
        "_open_into",
        "_overhead",
        "_pack_aad",
        "_salt",
        "window",
    )

    def __init__(self, sa: Sa, highest_seq: int, aead: Aead) -> None:
        self._salt = sa.keymat.salt
        self._overhead = TEXT_OFFSET + sa.suite.icv_len
        self._min_len = sa.suite.esp_len(0)
        self._set(sa)
        self._open_into = aead.open_into
        self._authentication_error = aead.authentication_error
        self.window = ReplayWindow(sa.replay_window, highest_seq)

    def become(self, sa: Sa) -> None:
        """Open for an SA with the same key from the next packet on; its window has seen the same.

        Numbers are compared in 64 bits: a packet accepted with ESN isn't accepted without.
        """
        self._set(sa)
        if sa.replay_window != self.window.size:
            self.window = self.window.resized(sa.replay_window)

    def _set(self, sa: Sa) -> None:
        self._esn = sa.esn
        self._pack_aad = _AAD_ESN.pack if sa.esn else _AAD.pack

    def decap(self, esp: memoryview, out: memoryview) -> tuple[int, int, bool]:
        """Decapsulate the ESP packet `esp`, SPI to ICV; write its payload to the start of `out`.

        Returns payload_len, next_header, and True if the packet advanced the window, i.e. is the
        newest so far. `out` is as long as `esp` or longer and does not overlap it. Raises Drop:
        TOO_SHORT, REPLAY_OLD, REPLAY_DUPLICATE, AUTH_FAILED, and AuthenticDrop: BAD_PADDING, DUMMY.
        RFC 4303 3.4, RFC 4106 3 to 5, RFC 7634 2.
        """
        length = len(esp)
        if length < self._min_len or length & 3:
            raise Drop(DropReason.TOO_SHORT)
        spi, seq, iv = _SPI_SEQ_LO_AND_IV.unpack_from(esp)
        window = self.window
        if self._esn:
            seq = window.infer(seq)
        replay = window.check(seq)
        if replay is not None:
            raise Drop(replay)
        text_len = length - self._overhead
        text = out[:text_len]
        try:
            self._open_into(self._salt + iv, esp[TEXT_OFFSET:], self._pack_aad(spi, seq), text)
        except self._authentication_error:
            raise Drop(self._refusal(esp, seq, text)) from None
        advanced = window.commit(seq)
        pad_len = text[-2]
        next_header = text[-1]
        payload_len = text_len - TRAILER_LEN - pad_len
        if payload_len < 0 or text[payload_len:-TRAILER_LEN] != _PADDING[pad_len]:
            raise AuthenticDrop(DropReason.BAD_PADDING, advanced)
        if next_header == NO_NEXT_HEADER:
            raise AuthenticDrop(DropReason.DUMMY, advanced)
        return payload_len, next_header, advanced

    def _refusal(self, esp: memoryview, seq: int, text: memoryview) -> DropReason:
        """Return REPLAY_OLD for a genuine packet that the window has passed; erase `text`.

        Only a packet left of the window, by its low half, is opened twice.
        """
        passed = self.window.passed(seq) if self._esn else None
        reason = DropReason.AUTH_FAILED
        if passed is not None:
            spi, _, iv = _SPI_SEQ_LO_AND_IV.unpack_from(esp)
            with suppress(self._authentication_error):
                aad = self._pack_aad(spi, passed)
                self._open_into(self._salt + iv, esp[TEXT_OFFSET:], aad, text)
                reason = DropReason.REPLAY_OLD
        # The AEAD may have written unauthenticated plaintext.
        text[:] = bytes(len(text))
        return reason
