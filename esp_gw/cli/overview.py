"""The help of `esp-gw` on one screen: its commands by what a person wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click

GROUPS: Mapping[str, Mapping[str, str]] = {
    "See": {
        "status": "what runs, the states of tunnels, what is wrong; --watch",
        "stats": "packets and drops since the start",
        "monitor": "the rates of the tunnels, live",
        "log, profile": "when tunnels changed, and why; where packets' time goes",
        "explain": "which way a packet goes and what stops it; --drops",
        "doctor, tune": "what this machine has and lacks; its better settings",
    },
    "Change": {
        "tunnel": "list, show, ping, add, change and delete tunnels",
        "sa": "list, show, add, delete, import and export SAs",
        "policy": "list, add and delete policies",
    },
    "Set up": {
        "init": "write the configurations and keys of two gateways",
        "invite, join": "a tunnel between two machines by one line of text",
        "keygen": "write a key file",
        "ledger": "show or create the record of used sequence numbers",
        "config": "validate, compare and show the configuration",
        "reload": "apply a changed configuration, nothing else; --dry-run",
    },
    "Run": {
        "run": "run the gateway, as systemd does",
        "guard": "keep protected prefixes closed without it, or open them",
    },
    "Try": {
        "demo, bench": "two gateways on this machine, verified; what it can do",
        "completion": "print the completion for bash, zsh or fish",
    },
}
"""The commands by the heading under which the help has them; some share a line."""
_OTHERS = "Further"
_WIDTH = 80
_HEAD = 8
_NAME = 14


class Overview(click.Group):
    """The root of the commands."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by group, a line for each, then options and exit statuses."""
        formatter.write("Usage: esp-gw [--socket PATH] COMMAND ...  Userspace IPsec ESP gateway.\n")
        for heading, texts in (*GROUPS.items(), (_OTHERS, self._others(ctx))):
            for line in self._lines(heading, texts):
                formatter.write(line)
        formatter.write(
            "\nOptions: --socket PATH of the daemon; --version; -h, --help with every command.\n"
            "Exit status: 0 done, 1 failed, 2 usage, 3 no gateway runs, 4 not permitted.\n"
        )

    def _others(self, ctx: click.Context) -> dict[str, str]:
        """Return the commands of no group with what they say of themselves."""
        known = {name for texts in GROUPS.values() for names in texts for name in _split(names)}
        others = [self.commands[name] for name in self.list_commands(ctx) if name not in known]
        return {
            str(each.name): each.get_short_help_str(_WIDTH - _HEAD - _NAME)
            for each in others
            if not each.hidden
        }

    def _lines(self, heading: str, texts: Mapping[str, str]) -> Iterator[str]:
        for names, text in texts.items():
            if any(name in self.commands for name in _split(names)):
                yield f"{heading:{_HEAD}}{names:{_NAME}}{text}\n"
                heading = ""


def _split(names: str) -> list[str]:
    return names.split(", ")
