"""Debian 12 under its own systemd: one machine, three boots, and its tests in their order."""

from __future__ import annotations

import pytest

from tests.support.engines import ENGINES
from tests.vm.debian.boot import LateNetwork
from tests.vm.debian.credentials import Confined, Credentials, Eyes
from tests.vm.debian.failures import GivenAway, Refused, Restarted, Stopped, TriedAgain
from tests.vm.debian.guard import Closed, GuardAlone, GuardBeside
from tests.vm.debian.package import Packaged, Purged
from tests.vm.debian.service import (
    Installed,
    InstalledAgain,
    Reloaded,
    Started,
    StartedTooEarly,
)
from tests.vm.debian.tuned import Tuned

RELEASE = "12"
pytestmark = pytest.mark.vm_full


@pytest.fixture(scope="module")
def engine() -> str:
    """The engine of the first half."""
    return ENGINES[-1]


@pytest.fixture(scope="module")
def other_engine() -> str:
    """The engine from the credentials on."""
    return ENGINES[0]


class TestInstalled(Installed): ...


class TestStartedTooEarly(StartedTooEarly): ...


class TestStarted(Started): ...


class TestReloaded(Reloaded): ...


class TestRestarted(Restarted): ...


class TestRefused(Refused): ...


class TestCredentials(Credentials): ...


class TestEyes(Eyes): ...


class TestTriedAgain(TriedAgain): ...


class TestGivenAway(GivenAway): ...


class TestGuardBeside(GuardBeside): ...


class TestInstalledAgain(InstalledAgain): ...


class TestPackaged(Packaged): ...


class TestStopped(Stopped): ...


class TestClosed(Closed): ...


class TestGuardAlone(GuardAlone): ...


class TestConfined(Confined): ...


class TestTuned(Tuned): ...


class TestLateNetwork(LateNetwork): ...


class TestPurged(Purged): ...
