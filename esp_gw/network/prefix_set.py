"""A set of IP prefixes that tells which others meet them, without a look at each."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable

from esp_gw.model import IPNetwork


class PrefixSet:
    """Prefixes, each as often as it was counted; two that meet are nested."""

    def __init__(self, prefixes: Iterable[IPNetwork] = ()) -> None:
        # By IP version and length: first addresses, each with its count.
        self._by_length: dict[tuple[int, int], Counter[int]] = {}
        self._firsts: dict[int, list[int]] = {4: [], 6: []}
        for prefix in prefixes:
            self.count(prefix, 1)

    def __contains__(self, prefix: IPNetwork) -> bool:
        """True for a prefix that is counted itself."""
        first = int(prefix.network_address)
        return first in self._by_length.get((prefix.version, prefix.prefixlen), {})

    def count(self, prefix: IPNetwork, number: int) -> None:
        """Count a prefix so often; a negative number takes it out again."""
        key, first = (prefix.version, prefix.prefixlen), int(prefix.network_address)
        firsts = self._firsts[prefix.version]
        counts = self._by_length.setdefault(key, Counter())
        if first not in counts:
            insort(firsts, first)
        counts[first] += number
        if not counts[first]:
            del counts[first], firsts[bisect_left(firsts, first)]
            if not counts:
                del self._by_length[key]

    def overlaps(self, prefix: IPNetwork) -> bool:
        """Return True if the prefix has an address in common with a counted one."""
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        firsts = self._firsts[prefix.version]
        at = bisect_left(firsts, first)
        if at < len(firsts) and firsts[at] <= last:
            return True
        for (version, length), counts in self._by_length.items():
            if version == prefix.version and length < prefix.prefixlen:
                bits = prefix.max_prefixlen - length
                if first >> bits << bits in counts:
                    return True
        return False

    def has_longer(self, version: int) -> bool:
        """Return True if a prefix of the IP version is counted that is no default route."""
        return any(of == version and length > 0 for of, length in self._by_length)
