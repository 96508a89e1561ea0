"""The libraries of a build stand in for their build scripts in the next one."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from lab.built_libraries import overrides, table

TRIPLE = "x86_64-unknown-linux-gnu"
OUTPUT = """\
cc -o x.o x.c
cargo:rerun-if-env-changed=CC
cargo:warning=slow
cargo:rustc-cfg=osslconf="NO_IDEA"
cargo:rustc-cfg=ossl300
cargo::rustc-link-lib=static=crypto
cargo:rustc-link-search=native=/out
cargo:include=/out/include
cargo::metadata=root=/out
"""


def message(folder: Path, package: str, output: str, *libraries: str) -> str:
    (folder / package).mkdir()
    (folder / package / "output").write_text(output)
    return json.dumps(
        {
            "reason": "build-script-executed",
            "package_id": package,
            "linked_libs": libraries,
            "out_dir": str(folder / package / "out"),
        }
    )


def test_what_a_build_script_said_is_what_its_override_says() -> None:
    assert table(OUTPUT) == {
        "rustc-cfg": ['osslconf="NO_IDEA"', "ossl300"],
        "rustc-link-lib": ["static=crypto"],
        "rustc-link-search": ["native=/out"],
        "include": "/out/include",
        "root": "/out",
    }


def test_an_instruction_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="rustc-env"):
        table("cargo:rustc-env=A=b\n")


def test_only_packages_with_a_static_library_are_overridden(tmp_path: Path) -> None:
    messages = [
        json.dumps({"reason": "compiler-artifact", "package_id": "openssl-sys"}),
        message(tmp_path, "openssl-sys", OUTPUT, "static=ssl", "static=crypto"),
        message(tmp_path, "pyo3-ffi", "cargo:rustc-cfg=Py_3_11\n"),
        message(tmp_path, "serde", "cargo:rustc-cfg=x\n", "static=none"),
    ]
    text = overrides(messages, {"openssl-sys": "openssl", "pyo3-ffi": "python"}, TRIPLE)
    assert tomllib.loads(text) == {"target": {TRIPLE: {"openssl": table(OUTPUT)}}}
