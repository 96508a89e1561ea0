"""Suites supported by each provider."""

from __future__ import annotations

from esp_gw.model import AES_GCM, AWS_LC, CHACHA20_POLY1305, Suite


def provider_fault(provider: str, suite: Suite) -> str | None:
    """The reason that a provider can't seal a suite, or None: AWS-LC has only 16-byte ICVs."""
    if provider != AWS_LC or (suite.cipher in (AES_GCM, CHACHA20_POLY1305) and suite.icv_len == 16):
        return None
    return f"crypto.provider aws-lc has no {suite}: choose a suite with an ICV of 16, or auto"
