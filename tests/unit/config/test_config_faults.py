from __future__ import annotations

import os
from pathlib import Path

import pytest

from esp_gw.config.document import MAX_DEPTH, MAX_FILE_LEN
from esp_gw.config.load import MAX_SELECTORS, load_config
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.errors import ConfigError, NetworkError
from esp_gw.model import LAST_TABLE
from esp_gw.network.objects import Host
from esp_gw.network.plan import plan_network
from esp_gw.values import FieldError, parse_table
from tests.support.builders import desired, make_sa, protect
from tests.support.config_files import (
    TUNNEL,
    faults,
    load,
    only_fault,
    problems,
    transport,
    write,
)


def test_tunnel_names_and_the_gateway_section_are_unique_over_all_files(folder: Path) -> None:
    write(folder, "gateway: {port: 4501}\n" + TUNNEL, "1.yaml")
    write(folder, TUNNEL.replace("192.0.2.2", "nowhere") + "gateway: {port: 4502}\n", "2.yaml")
    first, second = problems(folder)
    assert first.startswith("2.yaml:2: tunnels.b: ")
    assert "1.yaml" in first
    assert second.startswith("2.yaml:9: gateway: ")
    assert "1.yaml" in second


def test_the_problems_of_all_files_are_reported_together(folder: Path) -> None:
    write(folder, "gateway: [", "1.yaml")
    write(folder, "gateway: {port: 0}", "2.yaml")
    write(folder, "", "3.yaml")
    assert [text.split(": ")[0] for text in problems(folder)] == ["1.yaml:1", "2.yaml:1", "3.yaml"]


def test_a_folder_without_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.yaml"):
        load_config(tmp_path)


def test_all_faults_are_reported_in_one_run(folder: Path) -> None:
    text = """\
gateway:
  adress: 10.1.0.1
  mtu: big
  address: 10.1.0.1/24
polices: []
policies:
  - action: protect
    remote_ts: 10.2.0.0/24
  - remote_ts: 10.2.0.0/24
    action: bypass
    protocol: icmp
    remote_port: 8
tunnels:
  a:
    mode: tunel
    local: 192.0.2.1
    remote: 192.0.2.2
    local_ts:
      - 10.1.0.1/24
      - 10.3.0.0/24
    remote_ts: 10.2.0.0/24
    outbound:
      spi: 0x1001
      key:
        file: keys/missing.key
    inbound: {spi: 0x1002, key: {file: keys/b.in.key}}
  c:
    local: 192.0.2.1
    remote: 192.0.2.3
    local_ts: 10.1.0.0/24
    remote_ts: 10.3.0.0/24
    keepalives: 3
    outbound: {spi: 0x1003, key: {file: keys/b.out.key}}
    inbound: {spi: 0x1002, key: {file: keys/b.in.key}}
  d: {}
  "e f": {}
"""
    found = faults(folder, text)
    expected = [
        ("2", "gateway.adress", "did you mean address?"),
        ("3", "gateway.mtu", "from 576 to 65535"),
        ("4", "gateway.address", "for example 10.1.0.1"),
        ("5", "polices", "did you mean policies?"),
        ("7", "policies[0].action", "bypass or discard"),
        ("12", "policies[1].remote_port", "protocol 1 has no ports"),
        ("15", "tunnels.a.mode", "tunnel or transport"),
        ("19", "tunnels.a.local_ts[0]", "the prefix is 10.1.0.0/24"),
        ("25", "tunnels.a.outbound.key.file", "missing.key: the key file does not exist"),
        ("32", "tunnels.c.keepalives", "did you mean keepalive?"),
        ("35", "tunnels.d.local", "is missing"),
        ("35", "tunnels.d.remote", "is missing"),
        ("35", "tunnels.d.local_ts", "is missing"),
        ("35", "tunnels.d.remote_ts", "is missing"),
        ("35", "tunnels.d.outbound", "is missing"),
        ("35", "tunnels.d.inbound", "is missing"),
        ("36", "tunnels.e f", "expected a name"),
    ]
    assert len(found) == len(expected), "\n".join(found)
    for (line, field, words), text in zip(expected, found, strict=True):
        assert text.startswith(f"gw.yaml:{line}: {field}: "), text
        assert words in text


def test_conflicts_are_found_beside_other_faults(folder: Path) -> None:
    second = TUNNEL.replace("tunnels:\n  b:", "  c:").replace("b.out.key", "missing.key")
    found = faults(folder, TUNNEL + second + "    keepalive: -1\n")
    text = "\n".join(found)
    assert "gw.yaml:14: tunnels.c.outbound: SPI 0x1001" in text
    assert "gw.yaml:15: tunnels.c.inbound: SPI 0x1002" in text
    assert "gw.yaml:15: tunnels.c.inbound: has the same key as b/in" in text
    assert "missing.key: the key file does not exist" in text
    assert "keepalive: expected a number from 0 to 3600, not '-1'" in text
    assert len(found) == 5


def test_one_key_in_both_directions_is_refused(folder: Path) -> None:
    text = only_fault(folder, TUNNEL.replace("b.in.key", "b.out.key"))
    assert text.startswith("gw.yaml:8: tunnels.b.inbound: ")
    assert "repeat an IV" in text


def test_a_bypass_after_a_discard_is_refused(folder: Path) -> None:
    text = """\
policies:
  - {name: no, action: discard, remote_ts: 10.2.0.0/16}
  - {name: ssh, action: bypass, remote_ts: 10.2.0.0/24, protocol: tcp}
"""
    assert only_fault(folder, text).startswith(
        "gw.yaml:3: policies[1]: the bypass policy ssh overlaps"
    )


def test_a_policy_and_a_tunnel_have_different_names(folder: Path) -> None:
    text = TUNNEL + "policies: [{name: b, action: discard, remote_ts: 10.7.0.0/24}]\n"
    assert "another policy with the name b" in only_fault(folder, text)


LONG_HEX = "0badc0de" * 9


@pytest.mark.parametrize(
    ("old", "new", "start"),
    [
        ("192.0.2.2", "192.0.2.1", "4: tunnels.b.remote: is the same address"),
        ("192.0.2.2", "2001:db8::1", "4: tunnels.b.remote: is an IPv6 address"),
        ("192.0.2.2", "224.0.0.5", "4: tunnels.b.remote: 224.0.0.5 is a multicast"),
        ("192.0.2.2", "255.255.255.255", "4: tunnels.b.remote: 255.255.255.255 is a multicast"),
        (
            "192.0.2.2",
            "0.0.0.0",
            "4: tunnels.b.remote: 0.0.0.0 is not the address of a host: write",
        ),
        ("192.0.2.2", "'::'", "4: tunnels.b.remote: :: is not the address of a host: write any"),
        (
            "192.0.2.2",
            "'%any'",
            "4: tunnels.b.remote: %any is not the address of a host: write any",
        ),
        ("192.0.2.2", "'*'", "4: tunnels.b.remote: * is not the address of a host: write any"),
        ("192.0.2.2", "fe80::1", "4: tunnels.b.remote: link-local"),
        ("192.0.2.2", "fe80::1%eth0", "4: tunnels.b.remote: a zone"),
        ("192.0.2.2", "::ffff:1.2.3.4", "4: tunnels.b.remote: write the IPv4 address 1.2.3.4"),
        ("192.0.2.2", "192.0.2.2.2", "4: tunnels.b.remote: expected an IPv4 or IPv6 address, not"),
        ("192.0.2.2", "192.0.02.2", "4: tunnels.b.remote: expected an IPv4 or IPv6 address"),
        ("192.0.2.2", "", "4: tunnels.b.remote: expected an IPv4 or IPv6 address, not nothing"),
        ("192.0.2.2", "[192.0.2.2]", "4: tunnels.b.remote: expected an IPv4 or IPv6 address"),
        ("10.2.0.0/24", "10.2.0.9/24", "6: tunnels.b.remote_ts: host bits are set in 10.2.0.9/24"),
        ("10.2.0.0/24", "10.2.0.0/33", "6: tunnels.b.remote_ts: expected a prefix"),
        ("10.2.0.0/24", "10.2.0.0/255.255.255.0", "6: tunnels.b.remote_ts: expected a prefix"),
        ("10.2.0.0/24", "10.2.0.0/", "6: tunnels.b.remote_ts: expected a prefix"),
        ("10.2.0.0/24", "{a: b}", "6: tunnels.b.remote_ts: expected a prefix"),
        ("10.2.0.0/24", "[]", "6: tunnels.b.remote_ts: expected 1 to 64 entries"),
        (
            "10.2.0.0/24",
            "[10.3.0.0/24, 10.1.0.0/24]",
            "6: tunnels.b.remote_ts: local_ts and remote_ts are the same network, 10.1.0.0/24",
        ),
        ("10.2.0.0/24", "fd00::/64", "6: tunnels.b.remote_ts: 10.1.0.0/24 has no partner"),
        ("10.2.0.0/24", "[10.2.0.0/24, 'fd00::/64']", "6: tunnels.b.remote_ts: fd00::/64 has no"),
        ("0x1001", "255", "7: tunnels.b.outbound.spi: expected a number from 256"),
        ("0x1001", "0x100000000", "7: tunnels.b.outbound.spi: expected a number from 256"),
        ("0x1001", "010001", "7: tunnels.b.outbound.spi: expected a number from 256"),
        ("0x1001", "1_000", "7: tunnels.b.outbound.spi: expected a number from 256"),
        ("0x1001", LONG_HEX, "7: tunnels.b.outbound.spi: expected a number from 256"),
        ("{file: keys/b.out.key}", LONG_HEX, "7: tunnels.b.outbound.key: expected a mapping with"),
        ("{file: keys/b.out.key}", f"{{{LONG_HEX}}}", "7: tunnels.b.outbound.key.(a long name)"),
        ("keys/b.out.key", LONG_HEX, "7: tunnels.b.outbound.key.file: looks like a key"),
        ("{file: keys/b.out.key}", "{}", "7: tunnels.b.outbound.key: expected exactly one of"),
        ("b.out.key}", "b.out.key, credential: x}", "7: tunnels.b.outbound.key: expected exactly"),
        ("file: keys/b.out.key", "credential: ../x", "7: tunnels.b.outbound.key.credential: "),
        ("keys/b.out.key", '"keys/\\u0000\\n"', "7: tunnels.b.outbound.key.file: "),
        ("keys/b.out.key", "keys", "7: tunnels.b.outbound.key.file: "),
        ("  b:", "  -b:", "2: tunnels.-b: expected a name"),
        ("  b:", f"  {'b' * 33}:", "2: tunnels.(a long name): expected a name"),
        ("  b:", "  b: &anchor", "2: not valid YAML: anchors"),
        ("  b:", "  b: !!python/object:os.system", "2: not valid YAML: tags"),
        ("  b:", "  <<: {x: y}\n  b:", "2: expected a name before ':'"),
        ("  b:", "  ? [x]\n  : y\n  b:", "2: expected a name before ':'"),
        ("    local:", "    local: 1.2.3.4\n    local:", "4: tunnels.b.local: is given twice"),
    ],
)
def test_one_fault_is_one_line_with_its_place(folder: Path, old: str, new: str, start: str) -> None:
    assert old in TUNNEL
    text = only_fault(folder, TUNNEL.replace(old, new, 1))
    assert text.startswith(f"gw.yaml:{start}"), text
    assert "0badc0de" not in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("encapsulation: none\n    remote_port: 4500", "remote_port: is valid only with"),
        ("encapsulation: none\n    keepalive: 20", "keepalive: is valid only with"),
        ("local_original: 10.0.0.2", "local_original: is valid only with mode: transport"),
        ("remote_original: 10.0.0.2", "remote_original: is valid only with mode: transport"),
        ("replay_window: 32", "replay_window: expected a number from 64 to 8192"),
        ("replay_window: 100", "replay_window: expected a multiple of 64"),
        ("replay_window: 8256", "replay_window: expected a number from 64 to 8192"),
        ("suite: aes512", "suite: expected one of aes256gcm16"),
        ("esn: maybe", "esn: expected true or false"),
        ("protocol: any\n    local_ts_port: 2-1", "local_ts_port: expected any, a port"),
        ("protocol: 0", "protocol: expected any, icmp"),
        ("protocol: icmpv6\n    remote_ts_port: 1", "remote_ts_port: protocol 58 has no ports"),
        ("local_port: 1", "local_port: unknown field; did you mean local_ts_port?"),
    ],
)
def test_a_tunnels_settings_are_checked(folder: Path, line: str, words: str) -> None:
    assert f"tunnels.b.{words}" in only_fault(folder, f"{TUNNEL}    {line}\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("interface: sixteen-letters-", "interface: expected an interface name"),
        ("interface: a/b", "interface: expected an interface name"),
        ("interface: a b", "interface: expected an interface name"),
        ("interface: tun%d", "interface: expected an interface name"),
        ("interface: '..'", "interface: expected an interface name"),
        ("port: 65536", "port: expected a number from 1 to 65535"),
        ("engine: fast", "engine: expected auto or python or native"),
        ("mtu: 575", "mtu: expected a number from 576"),
        ("table: 1", "table: expected a number from 3"),
        ("table: 254", "table: is the system's table 'main'"),
        ("fwmark: 0", "fwmark: expected a number from 1"),
        ("state_dir: var/lib", "state_dir: expected a path that begins with '/'"),
        (f"control_socket: /{'x' * 107}", "control_socket: is too long"),
    ],
)
def test_the_gateways_settings_are_checked(folder: Path, line: str, words: str) -> None:
    assert only_fault(folder, f"gateway:\n  {line}\n").startswith(f"gw.yaml:2: gateway.{words}")


def test_transport_mode_refuses_other_networks(folder: Path) -> None:
    text = only_fault(folder, transport() + "    local_ts: 192.0.2.0/24\n")
    assert "192.0.2.1/32" in text


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("local_original: fd00::2", "local_original: is an IPv6 address, local is IPv4"),
        ("remote_original: any", "remote_original: expected an IPv4 or IPv6"),
        (
            "encapsulation: none\n    remote_original: 10.0.0.2",
            "remote_original: is valid only with encapsulation: udp: no NAT changes the address",
        ),
    ],
)
def test_original_addresses_are_those_of_esp_in_udp_and_of_one_family(
    folder: Path, lines: str, words: str
) -> None:
    assert f"tunnels.b.{words}" in only_fault(folder, f"{transport()}    {lines}\n")


def test_ipv6_needs_its_minimum_mtu(folder: Path) -> None:
    text = TUNNEL.replace("10.1.0.0/24", "fd00:1::/64").replace("10.2.0.0/24", "fd00:2::/64")
    message = only_fault(folder, text + "gateway:\n  mtu: 1279\n")
    assert message.startswith("gw.yaml:10: gateway.mtu: ")
    load(folder, text + "gateway: {mtu: 1280}\n")
    load(folder, TUNNEL + "gateway: {mtu: 576}\n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "gw.yaml: is empty"),
        (b"# only a comment\n", "gw.yaml: is empty"),
        (b"~", "gw.yaml: is empty"),
        (b"\n- a\n- b\n", "gw.yaml:2: expected gateway"),
        (b"text", "gw.yaml:1: expected gateway"),
        (b"gateway:\n  port: \xff\n", "gw.yaml:2: is not UTF-8"),
        ("gateway: {}".encode("utf-16"), "gw.yaml:1: is not UTF-8"),
        (b"gateway:\n  port: \x00\n", "gw.yaml:2: has a character"),
        (b"gateway: {}\n---\ngateway: {}\n", "gw.yaml:2: not valid YAML"),
        (b"gateway:\n  port: 1\n bad\n", "gw.yaml:"),
        (b"gateway: {port: 1\n", "gw.yaml:2: not valid YAML"),
        (b"gateway:\n\tport: 1\n", "gw.yaml:2: not valid YAML"),
        (b"a: &a [x]\nb: *a\n", "gw.yaml:1: not valid YAML: anchors"),
        (b"gateway: *a\n", "gw.yaml:1: not valid YAML: anchors"),
        (b"gateway: " + b"{a: " * (MAX_DEPTH + 1), "gw.yaml:1: not valid YAML: is nested too deep"),
        (b"\n" + b"- " * (MAX_DEPTH + 1), "gw.yaml:2: not valid YAML: is nested too deep"),
        # PyYAML may have a limit and a message of its own.
        (b"gateway: " + b"[" * 500_000, "gw.yaml:1: not valid YAML: "),
        (b"#" * (MAX_FILE_LEN + 1), "gw.yaml: is larger than 8388608 bytes"),
        (b"gateway: []\n", "gw.yaml:1: gateway: expected a mapping"),
        (b"policies: {}\n", "gw.yaml:1: policies: expected a list"),
        (b"policies: [x]\n", "gw.yaml:1: policies[0]: expected a mapping"),
        (b"tunnels: []\n", "gw.yaml:1: tunnels: expected a mapping"),
        (b"tunnels: {b: 1}\n", "gw.yaml:1: tunnels.b: expected a mapping"),
    ],
)
def test_a_file_that_is_not_a_configuration(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "gw.yaml"
    path.write_bytes(content)
    (text,) = problems(path)
    assert text.startswith(words), text


def test_a_byte_order_mark_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "gw.yaml"
    path.write_bytes(b"\xef\xbb\xbfgateway: {port: 4501}\n")
    assert load_config(path).settings.port == 4501


def test_options_of_the_native_engine_out_of_range(folder: Path) -> None:
    text = """\
gateway:
  engine: python
  workers: 65
  pin_workers: maybe
  latency: lo
  offload:
    udp_gs: no
    tso: 1
crypto:
  provider: gnutls
  offload: af_alg
"""
    found = [problem.split(": ", 2) for problem in faults(folder, text)]
    assert [entry[:2] for entry in found] == [
        ["gw.yaml:3", "gateway.workers"],
        ["gw.yaml:4", "gateway.pin_workers"],
        ["gw.yaml:5", "gateway.latency"],
        ["gw.yaml:7", "gateway.offload.udp_gs"],
        ["gw.yaml:8", "gateway.offload.tso"],
        ["gw.yaml:10", "crypto.provider"],
        ["gw.yaml:11", "crypto.offload"],
    ]
    assert "from 1 to 64" in found[0][2]
    assert "expected normal or low, not 'lo'" in found[2][2]
    assert "did you mean udp_gso?" in found[3][2]
    assert "auto or openssl or aws-lc" in found[5][2]
    assert "auto or on or off" in found[6][2]
    assert "from 1 to 64" in only_fault(folder, "gateway: {workers: 0}")
    assert "expected a mapping with tso" in only_fault(folder, "gateway: {offload: no}")


def test_a_removed_setting_is_refused_with_what_to_write_instead(folder: Path) -> None:
    problem = only_fault(folder, "gateway: {busy_poll_us: 50}\n")
    assert "gateway.busy_poll_us: was removed: it made round trips longer" in problem
    assert "'latency: low'" in problem


@pytest.mark.parametrize("value", ["lo", "LOW", "[low]", "0", "yes", "{low: yes}", "''"])
def test_a_latency_is_normal_or_low(folder: Path, value: str) -> None:
    problem = only_fault(folder, f"gateway: {{latency: {value}}}")
    assert "gateway.latency: expected normal or low, not " in problem


def test_aws_lc_needs_the_native_engine(folder: Path) -> None:
    problem = only_fault(folder, "gateway: {engine: python}\ncrypto:\n  provider: aws-lc\n")
    assert problem.startswith("gw.yaml:3: crypto.provider: ")
    assert "native" in problem


def test_only_one_file_may_have_the_section_crypto(folder: Path) -> None:
    write(folder, "crypto: {provider: openssl}", "1.yaml")
    write(folder, "\ncrypto: {provider: auto}", "2.yaml")
    (problem,) = problems(folder)
    assert problem.startswith("2.yaml:2: crypto: is already in ")


def test_sections_without_content_are_fine(tmp_path: Path) -> None:
    assert load(tmp_path, "gateway:\npolicies:\ntunnels:\n") == Desired(GatewaySettings())


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    absent = "missing.yaml: does not exist ('esp-gw init' writes one)"
    assert problems(tmp_path / "missing.yaml") == [absent]
    os.mkfifo(tmp_path / "fifo.yaml")
    assert problems(tmp_path / "fifo.yaml") == ["fifo.yaml: is not a regular file"]
    with pytest.raises(ConfigError, match="file name"):
        load_config(Path("a\0b"))


def test_the_number_of_selectors_is_bounded(folder: Path) -> None:
    def many(first: int, count: int) -> str:
        return f"[{', '.join(f'10.{first}.{i}.0/24' for i in range(count))}]"

    both = f"{{action: discard, local_ts: {many(1, 32)}, remote_ts: {many(2, 32)}}}"
    fitting = f"policies: [{', '.join([both] * 32)}]\n"
    assert sum(len(p.selectors) for p in load(folder, fitting).policies) == MAX_SELECTORS
    assert "at most 32768 pairs" in only_fault(folder, fitting + TUNNEL)
    wide = TUNNEL.replace("10.1.0.0/24", many(1, 33)).replace("10.2.0.0/24", many(2, 32))
    assert "more than 1024 pairs" in only_fault(folder, wide)
    long = TUNNEL.replace("10.1.0.0/24", many(1, 65))
    assert "not 65" in only_fault(folder, long)


@pytest.mark.parametrize("table", [2, 251, *range(252, 258), LAST_TABLE, LAST_TABLE + 1, 2**32 - 1])
def test_a_table_is_refused_exactly_when_no_network_can_be_planned_with_it(table: int) -> None:
    protected = desired((make_sa(),), (protect("t", "t/out", *make_sa().selectors),), table=table)
    try:
        plan_network(protected, {}, Host())
    except NetworkError:
        with pytest.raises(FieldError):
            parse_table(str(table))
    else:
        assert parse_table(str(table)) == table


def test_a_hook_is_a_program_by_its_path_with_arguments(folder: Path) -> None:
    write(folder, "gateway: {hook: /usr/local/bin/tell}\n" + TUNNEL)
    assert load_config(folder).settings.hook == ("/usr/local/bin/tell",)
    write(folder, "gateway: {hook: [/usr/local/bin/tell, --by, 'a mail']}\n" + TUNNEL)
    assert load_config(folder).settings.hook == ("/usr/local/bin/tell", "--by", "a mail")


@pytest.mark.parametrize(
    ("hook", "place", "says"),
    [
        ("tell", "gateway.hook", "expected a program by its path"),
        ("[bin/tell]", "gateway.hook", "expected a program by its path"),
        ("[]", "gateway.hook", "expected 1 to 64 entries"),
        ("[/bin/tell, {a: b}]", "gateway.hook[1]", "expected text of 1 to 1024 characters"),
        ('[/bin/tell, ""]', "gateway.hook[1]", "expected text of 1 to 1024 characters"),
        ('"/bin/tell\\n"', "gateway.hook", "on one line"),
        (f"[/bin/tell, {'0a' * 18}]", "gateway.hook[1]", "looks like a key"),
    ],
)
def test_a_wrong_hook_is_named(folder: Path, hook: str, place: str, says: str) -> None:
    write(folder, f"gateway:\n  hook: {hook}\n" + TUNNEL)
    (fault,) = problems(folder)
    assert place in fault
    assert says in fault
    assert "0a0a" not in fault


@pytest.mark.parametrize(("field", "side"), [("local_ts", "this side"), ("remote_ts", "the peer")])
def test_a_missing_selector_names_the_side_that_it_is_of(
    folder: Path, field: str, side: str
) -> None:
    lines = [line for line in TUNNEL.splitlines() if not line.strip().startswith(f"{field}:")]
    write(folder, "\n".join(lines))
    found = [each for each in problems(folder) if f".{field}:" in each]
    assert len(found) == 1
    assert found[0].endswith(f"is missing: tunnel mode needs the prefixes behind {side}")
