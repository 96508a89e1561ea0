"""Index of values by IP prefix; a lookup costs one probe per prefix length in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from esp_gw.model import IPNetwork

T = TypeVar("T")


class PrefixIndex(Generic[T]):
    """Maps prefixes to values, and finds the values of all prefixes around a given one."""

    def __init__(self, values: Mapping[IPNetwork, T]) -> None:
        # Keyed by IP version and host bits, then by the network address without the host bits.
        self._values: dict[tuple[int, int], dict[int, T]] = {}
        for prefix, value in values.items():
            host_bits = prefix.max_prefixlen - prefix.prefixlen
            networks = self._values.setdefault((prefix.version, host_bits), {})
            networks[int(prefix.network_address) >> host_bits] = value

    def around(self, prefix: IPNetwork, *, shorter: int = 0) -> Iterator[T]:
        """Yield the values of the prefixes that contain this one, in no particular order.

        They are shorter than `prefix` by `shorter` bits or more; 0 includes its own value.
        """
        number = int(prefix.network_address)
        least = prefix.max_prefixlen - prefix.prefixlen + shorter
        for (version, host_bits), networks in self._values.items():
            if version == prefix.version and host_bits >= least:
                value = networks.get(number >> host_bits)
                if value is not None:
                    yield value
