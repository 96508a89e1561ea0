"""The anti-replay window of one inbound SA."""

from __future__ import annotations

from array import array

from esp_gw.model import DropReason

_SEQ_LO_MASK = 2**32 - 1
_LAST_SEQ = 2**64 - 1


class ReplayWindow:
    """Which of the last `size` sequence numbers were seen (RFC 4303 3.4.3, RFC 6479).

    `highest` is the highest authenticated 64-bit sequence number, 0 for none; every number up to
    the one it begins with counts as seen. As in RFC 6479 the window is a ring indexed by the
    number, so that nothing is shifted when it moves; a place holds the whole number that was last
    there instead of a bit, so that nothing is cleared either.
    """

    __slots__ = ("_below", "_ring", "_size", "highest")

    def __init__(self, size: int, highest: int = 0) -> None:
        self.highest = highest
        self._size = size
        # The highest number too old to be told from a duplicate; 0 is never a packet's number.
        self._below = max(highest - size, 0)
        self._ring = array("Q", bytes(8 * size))
        for seq in range(self._below + 1, highest + 1):
            self._ring[seq % size] = seq

    def infer(self, seq_lo: int) -> int:
        """Find the 64-bit number of which `seq_lo` is the low half (RFC 4303 A2.2).

        It is the one among the 2**32 numbers from the window's left edge upwards: both cases of the
        RFC in one. Returns 0, which `check` refuses, where that is no number of the SA: below the
        first subspace or above the last.
        """
        left_edge = self.highest - self._size + 1
        seq = left_edge + ((seq_lo - left_edge) & _SEQ_LO_MASK)
        return seq if 0 < seq <= _LAST_SEQ else 0

    def check(self, seq: int) -> DropReason | None:
        """Say why a packet with this number can't be accepted, or None (RFC 4303 3.4.3)."""
        if seq <= self._below:
            return DropReason.REPLAY_OLD
        if self._ring[seq % self._size] == seq:
            return DropReason.REPLAY_DUPLICATE
        return None

    def commit(self, seq: int) -> bool:
        """Note an authenticated number that `check` accepted; True if it is the highest so far."""
        self._ring[seq % self._size] = seq
        if seq <= self.highest:
            return False
        self.highest = seq
        self._below = max(seq - self._size, 0)
        return True
