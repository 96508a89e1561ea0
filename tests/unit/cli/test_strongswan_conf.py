"""strongswan.conf as `esp-gw doctor` reads it, by the rules of strongswan.conf(5)."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_gw.cli.strongswan_conf import MAX_INCLUSIONS, Settings, read_settings
from esp_gw.errors import EspGwError


def read(folder: Path, text: str, **others: str) -> Settings:
    for name, content in others.items():
        (folder / f"{name}.conf").write_text(content)
    path = folder / "strongswan.conf"
    path.write_text(text)
    return read_settings(path)


def test_the_example_of_the_manual_is_read_as_it_says(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        "charon {\n somevalue = before include\n include include.conf\n}\ninclude other.conf\n",
        include="# a comment\nsomevalue = asdf\nsubsection {\n othervalue = yyy\n}\n"
        "yetanother = zz\n",
        other="charon {\n subsection {\n # replaces\n othervalue = xxx\n }\n}\ntwo {\n x = 12\n}\n",
    )
    assert settings.value("somevalue") == "asdf"
    assert settings.value("subsection", "othervalue") == "xxx"
    assert settings.value("yetanother") == "zz"
    assert settings.value("x") is None
    assert settings.value("subsection") is None
    assert settings.value("somevalue", "below") is None


def test_included_files_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    settings = read(tmp_path, "include *.d", c="")
    assert settings.value("x") is None
    (tmp_path / "b.d").write_text("charon { x = 2 }")
    (tmp_path / "a.d").write_text("charon { x = 1 }")
    assert read_settings(tmp_path / "strongswan.conf").value("x") == "2"


def test_the_programs_own_section_precedes_the_common_one(tmp_path: Path) -> None:
    text = "libstrongswan { a = 1 \n b = 1 }\ncharon-systemd { a = 3 }\ncharon { a = 2\n b = 2 }"
    settings = read(tmp_path, text)
    assert (settings.value("a"), settings.value("b")) == ("3", "2")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("x = a b  # c", "a b"),
        ('x = "a # } b"', "a # } b"),
        (r'x = "say \"it\""', 'say "it"'),
        ("x =", ""),
        ("x=1", "1"),
    ],
)
def test_values_are_read_as_they_are_written(tmp_path: Path, written: str, value: str) -> None:
    assert read(tmp_path, f"charon {{\n{written}\n}}").value("x") == value


def test_a_section_that_inherits_another_is_read_without_it(tmp_path: Path) -> None:
    settings = read(tmp_path, "other { x = 1 }\ncharon : other, more.of {\n y = 2\n}\n")
    assert (settings.value("y"), settings.value("x")) == ("2", None)


@pytest.mark.parametrize(
    ("load", "priority"),
    [("yes", 1), ("TRUE", 1), ("1", 1), ("10", 10), ("no", 0), ("0", 0), ("-1", -1), ("some", 0)],
)
def test_a_plugins_priority_is_the_number_or_one(tmp_path: Path, load: str, priority: int) -> None:
    text = f"charon {{ load_modular = yes\n plugins {{ a {{ load = {load}\n }}\n b {{ }} }} }}"
    settings = read(tmp_path, text)
    assert settings.priority("a") == priority
    assert settings.priority("b") == settings.priority("c") == 0
    assert settings.plugins() == {"a", "b"}


def test_a_list_of_plugins_counts_where_they_are_not_modular(tmp_path: Path) -> None:
    text = "charon { load = a b\n plugins { c { load = yes\n } } }"
    settings = read(tmp_path, text)
    assert not settings.is_modular
    assert [settings.priority(name) for name in "abc"] == [1, 1, 0]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("charon {\n x = 1\n", 3),
        ("charon {\n x\n}\n", 3),
        ("\n}\n", 2),
        ("\n\n= 1\n", 3),
        ('charon {\n x = "open\n}\n', 2),
        ("charon", 1),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(EspGwError) as caught:
        read(tmp_path, text)
    assert caught.value.where == f"{tmp_path}/strongswan.conf:{line}"


def test_a_fault_in_an_included_file_is_named_with_that_file(tmp_path: Path) -> None:
    with pytest.raises(EspGwError) as caught:
        read(tmp_path, "charon {\n include inner.conf\n}\n", inner="a {\n")
    assert caught.value.where == f"{tmp_path}/inner.conf:2"


def test_a_file_that_includes_itself_is_read_often_enough(tmp_path: Path) -> None:
    settings = read(tmp_path, "include strongswan.conf\ncharon { x = 1 }")
    assert settings.value("x") == "1"
    assert MAX_INCLUSIONS > 1


def test_a_missing_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(EspGwError, match=f"{tmp_path}/none: No such file"):
        read_settings(tmp_path / "none")
