"""Which limit is behind an error, and what a person is told of it."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esp_gw import files, limits
from esp_gw.cli import main as cli
from esp_gw.engine.base import OuterSocket
from esp_gw.engine.refusals import socket_refused, tun_not_created
from esp_gw.errors import WRONG_STATE, EngineError, EspGwError, LedgerError
from esp_gw.ledger import file as ledger_file
from esp_gw.model import Encapsulation
from esp_gw.values import parse_address

INFINITE = resource.RLIM_INFINITY


@pytest.fixture
def set_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, tuple[int, int]]]:
    """Limits of this process, and what it sets them to; nothing is really set."""
    found = {resource.RLIMIT_NOFILE: (20, 50), resource.RLIMIT_AS: (INFINITE, INFINITE)}
    monkeypatch.setattr(resource, "getrlimit", found.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", found.__setitem__)
    yield found


@pytest.fixture
def no_descriptor() -> Iterator[None]:
    """Leave no descriptor to open a file with."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EMFILE, "x"),
         "too many open files; raise the limit of 20: LimitNOFILE= of the unit, or 'ulimit -n'"),
        (OSError(errno.ENFILE, "x"),
         "too many open files in the machine; raise the sysctl fs.file-max"),
        (MemoryError(), "out of memory; free some, or raise MemoryMax= of the unit"),
        (OSError(errno.ENOMEM, "x"), "out of memory; free some, or raise MemoryMax= of the unit"),
        (RuntimeError("can't start new thread"), "no thread can be started; raise TasksMax= and "
         "LimitNPROC= of the unit, or 'ulimit -u'"),
    ],
)  # fmt: skip
def test_an_exhausted_limit_is_named_with_what_to_do(
    set_limits: dict[int, tuple[int, int]], error: Exception, line: str
) -> None:
    assert str(limits.named(error)) == line


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("can't start new thread"), "no thread can be started"),
        (ImportError("x.so: failed to map segment"), "out of memory"),
        (SystemError("error return without exception set"), "out of memory"),
    ],
)
def test_a_limited_address_space_is_named(
    set_limits: dict[int, tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    what: str,
) -> None:
    set_limits[resource.RLIMIT_AS] = (100 << 20, INFINITE)
    monkeypatch.setattr(limits, "_is_short", lambda: True)
    hint = "raise the limit of 100 MiB of address space: LimitAS= of the unit, or 'ulimit -v'"
    assert str(limits.named(error)) == f"{what}; {hint}"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "x"),
        RuntimeError("no"),
        ImportError("no module"),
        SystemError("bug"),
        EspGwError("no"),
        KeyError("x"),
    ],
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert limits.named(error) is None


def test_an_error_that_a_limit_caused_keeps_its_place_and_exit_status_and_gets_the_hint() -> None:
    class WrongError(EspGwError):
        exit_status = WRONG_STATE

    def fail() -> None:
        try:
            raise OSError(errno.EMFILE, "x")
        except OSError:
            raise WrongError("can't be read", where="/a", hint="use sudo") from None

    with pytest.raises(WrongError) as caught:
        fail()
    told = limits.named(caught.value)
    assert told is not None
    assert (told.where, told.what, told.exit_status) == ("/a", "can't be read", WRONG_STATE)
    assert "LimitNOFILE=" in str(told)


def refused_socket(error: OSError) -> EngineError:
    outer = OuterSocket(parse_address("192.0.2.1"), Encapsulation.UDP)
    return socket_refused(outer, 4500, error)


@pytest.mark.parametrize("refuse", [lambda error: tun_not_created("esp0", error), refused_socket])
def test_what_the_engines_say_of_too_few_descriptors_names_the_limit(
    refuse: Callable[[OSError], EngineError],
) -> None:
    def fail() -> None:
        try:
            raise OSError(errno.EMFILE, "x")
        except OSError as error:
            raise refuse(error) from None

    with pytest.raises(EngineError) as caught:
        fail()
    assert "Too many open files; raise the limit of" in str(limits.named(caught.value))


def test_all_open_files_that_are_allowed_are_used(
    set_limits: dict[int, tuple[int, int]],
) -> None:
    limits.raise_open_files()
    assert set_limits[resource.RLIMIT_NOFILE] == (50, 50)
    limits.require_open_files(50)
    with pytest.raises(EspGwError, match=r"it needs 51; raise the limit of 50: LimitNOFILE="):
        limits.require_open_files(51)


def test_a_needed_address_space_is_required(set_limits: dict[int, tuple[int, int]]) -> None:
    limits.require_address_space(1 << 20)
    set_limits[resource.RLIMIT_AS] = (100 << 20, INFINITE)
    limits.require_address_space(100)
    with pytest.raises(EspGwError, match=r"it needs 101 MiB; raise the limit of 100 MiB"):
        limits.require_address_space(101)


def test_a_ledger_that_cannot_be_opened_says_why(tmp_path: Path, no_descriptor: None) -> None:
    path = tmp_path / "ledger.db"
    with pytest.raises(LedgerError) as caught, ledger_file.errors(path):
        sqlite3.connect(path.as_uri() + "?mode=rw", uri=True).execute("PRAGMA user_version")
    assert caught.value.what == "Too many open files"
    assert "as root" not in str(limits.named(caught.value))


def test_a_missing_ledger_is_told_as_one(tmp_path: Path) -> None:
    path = tmp_path / "no" / "ledger.db"
    with pytest.raises(LedgerError) as caught, ledger_file.errors(path):
        sqlite3.connect(path.as_uri() + "?mode=rw", uri=True).execute("PRAGMA user_version")
    assert str(caught.value).endswith("No such file or directory; make the directory first")


def test_a_command_without_a_descriptor_ends_with_one_true_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_descriptor: None
) -> None:
    assert cli.main(["--socket", str(tmp_path / "x"), "status"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("esp-gw: error: ")
    assert "LimitNOFILE= of the unit, or 'ulimit -n'" in line


def test_a_bounded_read_takes_memory_for_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"x" * 1000)
    with files.open_regular(path) as (fd, _):
        tracemalloc.start()
        try:
            assert files.read_bounded(fd, 64 << 20) == b"x" * 1000
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_a_bounded_read_takes_all_up_to_the_limit(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    with files.open_regular(path) as (fd, _):
        assert files.read_bounded(fd, 1000) == b"x" * size


def test_a_bounded_read_of_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1001)
    with files.open_regular(path) as (fd, _), pytest.raises(OSError, match="larger than 1000"):
        files.read_bounded(fd, 1000)
