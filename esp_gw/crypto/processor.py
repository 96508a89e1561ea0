"""AES instructions of the processor, as reported by the kernel."""

from __future__ import annotations

from pathlib import Path

from esp_gw.model import NO_AES

_CPUINFO = Path("/proc/cpuinfo")


def aes_path() -> str:
    """The processor's instructions that OpenSSL uses for AES-GCM; `none` if there are none."""
    flags = set(_CPUINFO.read_text().split()) if _CPUINFO.exists() else set()
    for name, needed in (
        ("VAES, AVX-512", {"vaes", "vpclmulqdq", "avx512f", "avx512vl"}),
        ("AES-NI, AVX2", {"aes", "pclmulqdq", "avx2"}),
        ("AES-NI", {"aes", "pclmulqdq"}),
        ("ARMv8 Crypto Extensions", {"aes", "pmull"}),
    ):
        if needed <= flags:
            return name
    return NO_AES
