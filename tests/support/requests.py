"""Parameters of control requests that add SAs and policies."""

from __future__ import annotations


def sa(number: int, **fields: object) -> dict[str, object]:
    """Return the parameters of an outbound SA to 10.100+N.0.0/16."""
    return {
        "name": f"n{number}",
        "direction": "outbound",
        "spi": 0x8000 + number,
        "local": "192.0.2.1",
        "remote": "192.0.2.2",
        "local_ts": ["10.1.0.0/24"],
        "remote_ts": [f"10.{100 + number}.0.0/16"],
        "suite": "aes128gcm16",
        "key": f"{number:040x}",
        **fields,
    }


def policy(number: int, **fields: object) -> dict[str, object]:
    return {
        "name": f"p{number}",
        "action": "discard",
        "remote_ts": [f"10.{100 + number}.0.0/16"],
        **fields,
    }
