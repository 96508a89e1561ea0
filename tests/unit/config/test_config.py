from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from esp_gw.config.keyfile import format_keymat, generate
from esp_gw.config.load import load_config
from esp_gw.desired import GatewaySettings, Offloads
from esp_gw.errors import ConfigError
from esp_gw.model import (
    DEFAULT_SUITE,
    SUITES,
    Action,
    Direction,
    Encapsulation,
    Mode,
    Origin,
    PortRange,
    Selector,
    Tunnel,
)
from tests.support.config_files import (
    TUNNEL,
    load,
    replace_key_file,
    transport,
    write,
    write_keys,
)


def test_a_tunnel_becomes_two_sas_and_a_policy(folder: Path) -> None:
    desired = load(folder, TUNNEL)
    selectors = (Selector(ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24")),)
    out, in_ = desired.sas
    assert (out.name, out.direction, out.spi, out.pair) == (
        "b/out",
        Direction.OUTBOUND,
        4097,
        "b/in",
    )
    assert (in_.name, in_.direction, in_.spi, in_.pair) == (
        "b/in",
        Direction.INBOUND,
        4098,
        "b/out",
    )
    for sa, key in ((out, "b.out"), (in_, "b.in")):
        assert format_keymat(sa.keymat) in (folder / "keys" / f"{key}.key").read_text()
        assert (sa.mode, sa.encapsulation) == (Mode.TUNNEL, Encapsulation.UDP)
        assert (sa.local, sa.remote) == (ip_address("192.0.2.1"), ip_address("192.0.2.2"))
        assert (sa.suite, sa.esn, sa.replay_window) == (DEFAULT_SUITE, True, 4096)
        assert (sa.tunnel, sa.origin, sa.selectors) == ("b", Origin.CONFIG, selectors)
        assert sa.remote_port == 4500
    assert (out.keepalive, in_.keepalive) == (20, 0)
    (policy,) = desired.policies
    assert (policy.name, policy.action, policy.sas, policy.tunnel) == (
        "b",
        Action.PROTECT,
        ("b/out",),
        "b",
    )
    assert policy.selectors == selectors
    assert desired.tunnels == (
        Tunnel(
            name="b",
            mode=Mode.TUNNEL,
            encapsulation=Encapsulation.UDP,
            suite=DEFAULT_SUITE,
            local=out.local,
            remote=out.remote,
            local_ts=(selectors[0].local,),
            remote_ts=(selectors[0].remote,),
            sas=("b/out", "b/in"),
            policies=("b",),
        ),
    )
    assert desired.settings == GatewaySettings()
    assert desired.warnings == ()


def test_every_gateway_field_arrives(tmp_path: Path) -> None:
    desired = load(
        tmp_path,
        """
gateway:
  interface: tun-esp
  address: [10.1.0.1, "fd00::1"]
  port: 4501
  engine: native
  mtu: 1400
  fwmark: 0xabc
  table: 77
  state_dir: /tmp/state
  control_socket: /tmp/control.sock
  allow_inline_keys: no
  min_mtu: 1300
  workers: 4
  pin_workers: yes
  latency: low
  offload: {tso: no, uso: off, udp_gso: false, udp_gro: no, merge: no}
crypto:
  provider: aws-lc
  offload: on
""",
    )
    assert desired.settings == GatewaySettings(
        interface="tun-esp",
        addresses=(ip_address("10.1.0.1"), ip_address("fd00::1")),
        port=4501,
        engine="native",
        mtu=1400,
        fwmark=0xABC,
        table=77,
        state_dir="/tmp/state",
        control_socket="/tmp/control.sock",
        min_mtu=1300,
        workers=4,
        pin_workers=True,
        latency="low",
        offload=Offloads(False, False, False, False, False),
        provider="aws-lc",
        af_alg="on",
    )


@pytest.mark.parametrize("name", [field.name for field in fields(Offloads)])
def test_an_offload_that_is_switched_off_leaves_the_others_on(tmp_path: Path, name: str) -> None:
    settings = load(tmp_path, f"gateway: {{offload: {{{name}: false}}}}\n").settings
    assert settings.offload == replace(Offloads(), **{name: False})


def test_aws_lc_has_every_suite_whose_icv_is_not_truncated(folder: Path) -> None:
    for suite in SUITES.values():
        for name in ("b.out", "b.in"):
            replace_key_file(folder, name, [generate(suite)])
        text = f"{TUNNEL}    suite: {suite}\ncrypto: {{provider: aws-lc}}\n"
        if suite.icv_len == 16 and not suite.is_readable:
            assert load(folder, text).settings.provider == "aws-lc"
            continue
        with pytest.raises(ConfigError) as caught:
            load(folder, text)
        (problem,) = caught.value.problems
        assert (problem.line, problem.field) == (text.count("\n") - 1, "tunnels.b.suite")
        assert f"aws-lc has no {suite}" in problem.message


def test_a_suite_that_does_not_encrypt_causes_a_warning(folder: Path) -> None:
    assert load(folder, TUNNEL).warnings == ()
    (warning,) = load(folder, f"{TUNNEL}    suite: aes256gmac\n").warnings
    assert "tunnels.b.suite" in warning
    assert "does not encrypt" in warning


def test_every_tunnel_field_arrives(folder: Path) -> None:
    text = TUNNEL + "    remote_port: 4501\n    protocol: udp\n    local_ts_port: 53\n"
    text += "    remote_ts_port: 1000-2000\n    suite: chacha20poly1305\n    esn: off\n"
    text += "    replay_window: 64\n    keepalive: 5\n"
    out, in_ = load(folder, text).sas
    assert (out.remote_port, out.keepalive, in_.keepalive) == (4501, 5, 0)
    for sa in (out, in_):
        assert (sa.suite.name, sa.esn, sa.replay_window) == ("chacha20poly1305", False, 64)
        (selector,) = sa.selectors
        assert selector.protocol == 17
        assert (selector.local_port, selector.remote_port) == (
            PortRange(53, 53),
            PortRange(1000, 2000),
        )


def test_prefixes_are_paired_within_their_family(folder: Path) -> None:
    text = TUNNEL.replace("10.1.0.0/24", '[10.1.0.0/24, "fd00:1::/64", 10.9.0.1]').replace(
        "10.2.0.0/24", '["fd00:2::/64", 10.2.0.0/24]'
    )
    desired = load(folder, text)
    pairs = {(str(s.local), str(s.remote)) for s in desired.policies[0].selectors}
    assert pairs == {
        ("10.1.0.0/24", "10.2.0.0/24"),
        ("10.9.0.1/32", "10.2.0.0/24"),
        ("fd00:1::/64", "fd00:2::/64"),
    }
    assert desired.sas[0].selectors == desired.sas[1].selectors == desired.policies[0].selectors


def test_transport_mode_is_between_the_outer_addresses(folder: Path) -> None:
    (selector,) = load(folder, transport()).sas[0].selectors
    assert (str(selector.local), str(selector.remote)) == ("192.0.2.1/32", "192.0.2.2/32")
    given = transport() + "    local_ts: 192.0.2.1/32\n    remote_ts: 192.0.2.2\n"
    assert load(folder, given).sas[0].selectors == (selector,)


def test_the_original_addresses_of_transport_mode_are_asked_for_once(folder: Path) -> None:
    behind = transport(TUNNEL.replace("192.0.2.1", "10.0.0.2")) + "    sas: 1\n"
    (warning,) = load(folder, behind).warnings
    assert "gw.yaml:3: tunnels.b.local: a NAT is between 10.0.0.2" in warning
    given = behind + "    local_original: 198.51.100.1\n    remote_original: 10.9.0.1\n"
    desired = load(folder, given)
    assert desired.warnings == ()
    ends = {(str(sa.local_original), str(sa.remote_original)) for sa in desired.sas}
    assert ends == {("198.51.100.1", "10.9.0.1")}


def test_without_udp_there_is_no_keepalive(folder: Path) -> None:
    assert load(folder, TUNNEL + "    encapsulation: none\n").sas[0].keepalive == 0


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", (20, 0)),
        ("    liveness: 10\n", (0, 10)),
        ("    liveness: 10\n    keepalive: 15\n", (15, 10)),
        ("    liveness: 0\n", (20, 0)),
        ("    liveness: 3600\n    encapsulation: none\n", (0, 3600)),
    ],
)
def test_authentic_keepalives_stand_in_for_those_of_one_byte(
    folder: Path, lines: str, expected: tuple[int, int]
) -> None:
    out, in_ = load(folder, TUNNEL + lines).sas
    assert (out.keepalive, out.liveness) == expected
    assert (in_.keepalive, in_.liveness) == (0, 0)


def test_policies_of_the_file_come_first_and_in_order(folder: Path) -> None:
    text = """
policies:
  - {action: bypass, remote_ts: 10.2.0.0/24, local_ts: 10.1.0.0/24, protocol: tcp, local_port: 22}
  - {name: drop, action: discard, remote_ts: [10.2.0.0/25, "fd00::/8"], protocol: "47"}
  - {action: discard, remote_ts: 10.5.0.0/16}
"""
    desired = load(folder, text + TUNNEL)
    assert [p.name for p in desired.policies] == ["policy-1", "drop", "policy-3", "b"]
    bypass, drop, _, _ = desired.policies
    assert bypass.action is Action.BYPASS
    assert bypass.selectors == (
        Selector(ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24"), 6, PortRange(22, 22)),
    )
    assert {(str(s.local), str(s.remote), s.protocol) for s in drop.selectors} == {
        ("0.0.0.0/0", "10.2.0.0/25", 47),
        ("::/0", "fd00::/8", 47),
    }


def test_text_that_yaml_1_1_would_change_is_kept(folder: Path) -> None:
    # YAML 1.1 reads 2:10:20:30:40:50:1:2 as a base-60 number, `no` and `on` as booleans.
    text = TUNNEL.replace("  b:", "  on:").replace("192.0.2.1", "2:10:20:30:40:50:1:2")
    text = text.replace("192.0.2.2", "2:10:20:30:40:50:1:3")
    desired = load(folder, text)
    assert [tunnel.name for tunnel in desired.tunnels] == ["on"]
    assert desired.sas[0].local == ip_address("2:10:20:30:40:50:1:2")


@pytest.mark.parametrize("spi", ["4097", "0x1001", '"0x1001"', "'4097'", "0X1001"])
def test_an_spi_is_decimal_or_hexadecimal_quoted_or_not(folder: Path, spi: str) -> None:
    assert load(folder, TUNNEL.replace("0x1001", spi)).sas[0].spi == 4097


def test_credentials_and_key_files_and_absolute_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder / "keys"))
    text = TUNNEL.replace("file: keys/b.out.key", "credential: b.out.key")
    text = text.replace("file: keys/b.in.key", f"file: {folder}/keys/b.in.key")
    assert load(folder, text).sas == load(folder, TUNNEL).sas


def test_inline_keys_need_permission_and_cause_a_warning(folder: Path) -> None:
    key = format_keymat(generate(DEFAULT_SUITE))
    text = TUNNEL.replace("file: keys/b.out.key", f"inline: {key}")
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert "gw.yaml:7: tunnels.b.outbound.key.inline: " in str(caught.value)
    assert "allow_inline_keys" in str(caught.value)
    assert key[:8] not in str(caught.value)
    desired = load(folder, "gateway: {allow_inline_keys: true}\n" + text)
    assert format_keymat(desired.sas[0].keymat) == key
    (warning,) = desired.warnings
    assert ":8: tunnels.b.outbound.key.inline: " in warning
    assert key[:8] not in warning


def test_an_inline_key_of_decimal_digits_is_kept_as_text(folder: Path) -> None:
    text = "gateway: {allow_inline_keys: yes}\n" + TUNNEL
    for key in ("0" * 71 + "7", "1" * 35 + "e" + "1" * 36, "0x" + "12" * 36):
        desired = load(folder, text.replace("file: keys/b.out.key", f"inline: {key}"))
        assert format_keymat(desired.sas[0].keymat) == key.removeprefix("0x")


def test_a_folder_is_read_in_the_order_of_names(folder: Path) -> None:
    write_keys(folder, tunnel="c")
    other = (
        TUNNEL.replace("  b:", "  c:")
        .replace("/b.", "/c.")
        .replace("0x1001", "0x2001")
        .replace("4098", "8194")
    )
    write(folder, "policies: [{action: discard, remote_ts: 10.7.0.0/24}]\n" + other, "10.yaml")
    write(folder, TUNNEL + "policies: [{action: discard, remote_ts: 10.8.0.0/24}]\n", "20.yaml")
    write(folder, "gateway: {port: 4501}\n", "30.yaml")
    write(folder, "nonsense: [", ".hidden.yaml")
    write(folder, "nonsense: [", "notes.txt")
    write(folder, "nonsense: [", "40.yml")
    desired = load_config(folder)
    assert [tunnel.name for tunnel in desired.tunnels] == ["c", "b"]
    assert [policy.name for policy in desired.policies] == ["policy-1", "policy-2", "c", "b"]
    assert desired.settings.port == 4501
    unread, redundant = desired.warnings
    assert "40.yml" in unread
    assert "20.yaml" in redundant
    assert "the tunnel c has the same prefixes" in redundant
