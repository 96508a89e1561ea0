"""Values by prefix, found through any prefix inside: a look-up for each prefix length in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from esp_gw.model import IPNetwork

T = TypeVar("T")


class PrefixIndex(Generic[T]):
    """Finds what thousands of prefixes stand for without going through them all."""

    def __init__(self, values: Mapping[IPNetwork, T]) -> None:
        # IP version and host bits, then the network's number without those.
        self._values: dict[tuple[int, int], dict[int, T]] = {}
        for prefix, value in values.items():
            host_bits = prefix.max_prefixlen - prefix.prefixlen
            networks = self._values.setdefault((prefix.version, host_bits), {})
            networks[int(prefix.network_address) >> host_bits] = value

    def around(self, prefix: IPNetwork, *, shorter: int = 0) -> Iterator[T]:
        """Yield the values of the prefixes that hold this one, in no order.

        They are shorter than it by `shorter` bits or more; by 0, its own value is among them.
        """
        number = int(prefix.network_address)
        least = prefix.max_prefixlen - prefix.prefixlen + shorter
        for (version, host_bits), networks in self._values.items():
            if version == prefix.version and host_bits >= least:
                value = networks.get(number >> host_bits)
                if value is not None:
                    yield value
