"""Keys as credentials of the service, and commands that look with the service's eyes."""

from __future__ import annotations

import json
import re
from copy import deepcopy

from tests.support.debian import ETC, PLAIN, SEALED, Debian

# clone3, whose flags no filter can see, by RestrictNamespaces=: libc then takes clone. socket, by
# RestrictAddressFamilies=: the gateway asks for AF_ALG, which only a drop-in allows.
EXPECTED = ("435", "41")
"""Numbers of system calls that are denied in every run."""


class Credentials:
    def test_a_plain_and_an_encrypted_one_are_the_keys_of_a_tunnel(
        self, machine: Debian, other_engine: str
    ) -> None:
        machine.shell(f"mkdir -p -m 700 {PLAIN.rpartition('/')[0]} {SEALED.rpartition('/')[0]}")
        machine.shell(f"mv {ETC}/keys/peer.out.key {PLAIN}; chown root: {PLAIN}")
        # There is no TPM: the key that seals it is in /var/lib/systemd.
        machine.shell(
            f"systemd-creds encrypt --with-key=host --name=in.key {ETC}/keys/peer.in.key {SEALED}"
            f" && rm {ETC}/keys/peer.in.key"
        )
        assert machine.keys["peer.in.key"].splitlines()[-1] not in machine.ok("cat", SEALED)
        machine.drop_in(
            "keys", f"LoadCredential=out.key:{PLAIN}", f"LoadCredentialEncrypted=in.key:{SEALED}"
        )
        machine.config["gateway"]["engine"] = other_engine
        tunnel = machine.config["tunnels"]["peer"]
        for direction, name in (("outbound", "out.key"), ("inbound", "in.key")):
            tunnel[direction]["key"] = {"credential": name}
        machine.configure(machine.config)
        machine.ok("systemctl", "restart", "esp-gw")
        assert machine.show()["StatusText"] == f"2 SAs, engine {other_engine}"
        machine.assert_carries()


class Eyes:
    """Root has no credentials and reads every file: it must not judge by its own eyes."""

    def test_check_finds_the_credentials_of_the_service(self, running: Debian) -> None:
        found = running.run("esp-gw", "config", "check", ETC)
        assert found.status == 0, found.tail

    def test_check_reports_a_key_that_the_service_cannot_read(self, running: Debian) -> None:
        config = deepcopy(running.config)
        config["tunnels"]["peer"]["outbound"]["key"] = {"file": "keys/root.key"}
        running.write(f"{ETC}/keys/root.key", running.keys["peer.out.key"], mode="600")
        running.configure(config)
        found = running.run("esp-gw", "config", "check", ETC)
        running.configure(running.config)
        running.ok("rm", f"{ETC}/keys/root.key")
        assert found.status != 0
        assert "root.key" in found.stderr

    def test_doctor_finds_no_fault(self, running: Debian) -> None:
        found = running.run("esp-gw", "doctor", "--json")
        assert found.status == 0, found.tail
        assert json.loads(found.stdout)["faults"] == 0


class Confined:
    def test_no_system_call_of_the_gateway_was_denied(self, machine: Debian) -> None:
        """The kernel logs each denied call, as a call that a filter doesn't allow shows."""
        machine.run(
            *("systemd-run", "--quiet", "--wait", "-p", "SystemCallFilter=~@chown"),
            *("-p", "SystemCallErrorNumber=EPERM", "chown", "root", "/root"),
        )
        log = machine.ok("journalctl", "-b", "-q", "-o", "cat", "-k").splitlines()
        denied = [line for line in log if "type=1326" in line]
        assert [line for line in denied if 'comm="chown"' in line], machine.tail()
        user = machine.ok("id", "-u", "esp-gw").strip()
        # Its programs are those of its user.
        ours = [line for line in denied if f" uid={user} " in line]
        assert [line for line in ours if re.search(r"syscall=(\d+)", line)[1] not in EXPECTED] == []
