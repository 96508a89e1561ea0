"""Printer of states and policies in the format of iproute2 (ip/ipxfrm.c)."""

from __future__ import annotations

from esp_gw.model import AES_GCM, AES_GMAC, Direction, Mode
from esp_gw.xfrm.records import Dump, XfrmPolicy, XfrmSelector, XfrmState

INF = (
    "\tlifetime config:\n"
    "\t  limit: soft (INF)(bytes), hard (INF)(bytes)\n"
    "\t  limit: soft (INF)(packets), hard (INF)(packets)\n"
    "\t  expire add: soft 0(sec), hard 0(sec)\n"
    "\t  expire use: soft 0(sec), hard 0(sec)\n"
    "\tlifetime current:\n"
    "\t  740(bytes), 5(packets)\n"
    "\t  add 2026-11-21 16:38:57 use -\n"
)
STATS = "\tstats:\n\t  replay-window 0 replay 0 failed 0\n"
NAMES = {1: "icmp", 6: "tcp", 17: "udp", 47: "gre", 58: "ipv6-icmp", 132: "sctp", 136: "udplite"}


def print_dump(dump: Dump, *, stats: bool = False) -> str:
    """The output of `ip xfrm state` followed by that of `ip xfrm policy`."""
    blocks = [print_state(state, stats=stats) for state in dump.states]
    return "".join(blocks + [print_policy(policy, stats=stats) for policy in dump.policies])


def print_state(state: XfrmState, *, stats: bool = False) -> str:
    cipher = {AES_GCM: "rfc4106(gcm(aes))", AES_GMAC: "rfc4543(gcm(aes))"}.get(
        state.suite.cipher, "rfc7539esp(chacha20,poly1305)"
    )
    bitmap = state.esn or state.window > 32
    key = state.keymat.to_bytes()
    text = f"src {state.src} dst {state.dst}\n"
    text += f"\tproto esp {_identity(state.spi, state.reqid, state.mode, stats=stats)}\n"
    flags = "esn" if state.esn else ""
    text += f"\treplay-window {0 if bitmap else state.window} "
    text += "seq 0x00000000 " if stats else ""
    text += f"flag {flags}" if stats or flags else ""
    text += f" (0x{'10000000' if state.esn else '00000000'})\n" if stats else "\n"
    text += f"\taead {cipher} 0x{key.hex()}{f' ({8 * len(key)} bits)' if stats else ''}"
    text += f" {8 * state.suite.icv_len}\n"
    if state.udp is not None:
        text += f"\tencap type espinudp sport {state.udp.sport} dport {state.udp.dport} "
        text += f"addr {'0.0.0.0' if state.src.version == 4 else '::'}\n"
    if bitmap:
        words = -(-state.window // 32)
        text += "\tanti-replay esn context:\n"
        text += f"\t seq-hi {state.seq >> 32:#x}, seq {state.seq % 2**32:#x}, "
        text += f"oseq-hi {state.oseq >> 32:#x}, oseq {state.oseq % 2**32:#x}\n"
        text += f"\t replay_window {state.window}, bitmap-length {words}"
        for word in range(words):
            text += "\n\t " if word % 8 == 0 else ""
            text += "0badcafe "
        text += "\n"
    else:
        text += f"\tanti-replay context: seq {state.seq:#x}, oseq {state.oseq:#x}, "
        text += "bitmap 0x00000000\n"
    if state.direction is not None:
        text += f"\tdir {'in' if state.direction is Direction.INBOUND else 'out'}\n"
    if state.selector is not None:
        text += f"\tsel {_selector(state.selector, stats=stats)}\n"
    return text + (INF + STATS if stats else "")


def print_policy(policy: XfrmPolicy, *, stats: bool = False) -> str:
    text = f"{_selector(policy.selector, stats=stats)}\n\tdir {policy.direction} "
    text += "action block " if policy.block else "action allow " if stats else ""
    text += "index 49 " if stats else ""
    text += f"priority {policy.priority} ptype main "
    text += "share any flag  (0x00000000)\n" + INF if stats else "\n"
    if (template := policy.template) is not None:
        text += f"\ttmpl src {template.src} dst {template.dst}\n"
        spi = template.spi if template.spi or stats else None
        text += f"\t\tproto esp {_identity(spi, template.reqid, template.mode, stats=stats)}\n"
        if stats:
            text += "\t\tlevel required share any \n"
            text += "\t\tenc-mask ffffffff auth-mask ffffffff comp-mask ffffffff\n"
    return text


def _identity(spi: int | None, reqid: int, mode: Mode, *, stats: bool) -> str:
    text = "" if spi is None else f"spi 0x{spi:08x}{f'({spi})' if stats else ''} "
    return f"{text}reqid {reqid}{f'(0x{reqid:08x})' if stats else ''} mode {mode}"


def _selector(selector: XfrmSelector, *, stats: bool) -> str:
    text = f"src {selector.src} dst {selector.dst} "
    if selector.protocol is not None:
        text += f"proto {NAMES.get(selector.protocol, selector.protocol)} "
    text += "" if selector.sport is None else f"sport {selector.sport} "
    text += "" if selector.dport is None else f"dport {selector.dport} "
    return text + ("uid 0" if stats else "")
