"""The anti-replay window of one inbound SA."""

from __future__ import annotations

from array import array

from esp_gw.model import DropReason

_SEQ_LO_MASK = 2**32 - 1
_LAST_SEQ = 2**64 - 1


class ReplayWindow:
    """Anti-replay window over the last `size` sequence numbers (RFC 4303 3.4.3, RFC 6479).

    `highest` is the highest authenticated 64-bit sequence number, 0 for none; every number up to
    its initial value counts as seen. As in RFC 6479 the window is a ring indexed by sequence
    number, so nothing is shifted when it advances. A slot holds the whole sequence number instead
    of a bit, so nothing is cleared either.
    """

    __slots__ = ("_below", "_ring", "highest", "size")

    def __init__(self, size: int, highest: int = 0) -> None:
        self.highest = highest
        self.size = size
        # The highest number left of the window; 0 is never a packet's number.
        self._below = max(highest - size, 0)
        self._ring = array("Q", bytes(8 * size))
        for seq in range(self._below + 1, highest + 1):
            self._ring[seq % size] = seq

    def resized(self, size: int) -> ReplayWindow:
        """Return a window of another size that has seen the same numbers.

        Numbers left of this window count as seen: it has forgotten which of them were.
        """
        window = ReplayWindow(size)
        window.highest = self.highest
        window._below = max(self.highest - size, 0)
        for seq in range(window._below + 1, self.highest + 1):
            if seq <= self._below or self._ring[seq % self.size] == seq:
                window._ring[seq % size] = seq
        return window

    def infer(self, seq_lo: int) -> int:
        """Return the 64-bit sequence number whose low half is `seq_lo` (RFC 4303 A2.2).

        It is the only candidate among the 2**32 numbers from the window's left edge upwards, which
        covers both cases of the RFC. Returns 0, which `check` rejects, if the SA has no such
        number: below the first subspace or above the last.
        """
        left_edge = self.highest - self.size + 1
        seq = left_edge + ((seq_lo - left_edge) & _SEQ_LO_MASK)
        return seq if 0 < seq <= _LAST_SEQ else 0

    def passed(self, seq: int) -> int | None:
        """Return the other number that a packet inferred as `seq` may have had, if there is one.

        A packet that the window has passed is taken for one of the next 2**32 numbers, and its ICV
        does not hold. Its number is 2**32 lower, nearer to the window.
        """
        passed = seq - 2**32
        return passed if seq - self.highest > 2**31 and passed > 0 else None

    def check(self, seq: int) -> DropReason | None:
        """Return the reason to drop a packet with this number, or None (RFC 4303 3.4.3)."""
        if seq <= self._below:
            return DropReason.REPLAY_OLD
        if self._ring[seq % self.size] == seq:
            return DropReason.REPLAY_DUPLICATE
        return None

    def commit(self, seq: int) -> bool:
        """Record an authenticated number that passed `check`; True if it is the highest so far."""
        self._ring[seq % self.size] = seq
        if seq <= self.highest:
            return False
        self.highest = seq
        self._below = max(seq - self.size, 0)
        return True
