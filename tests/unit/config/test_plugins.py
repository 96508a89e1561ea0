"""Programs of others that hook into pydantic stay outside the gateway and its commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
PLUGIN = """
print("loaded")

class Plugin:
    def new_schema_validator(self, *_arguments, **_named):
        return None, None, None

plugin = Plugin()
"""


@pytest.mark.parametrize("module", ["esp_gw.config.load", "esp_gw.daemon.children"])
def test_no_plug_in_of_pydantic_is_loaded(tmp_path: Path, module: str) -> None:
    (tmp_path / "intruder.py").write_text(PLUGIN)
    info = tmp_path / "intruder-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: intruder\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pydantic]\nintruder = intruder:plugin\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{CHECKOUT}"}
    environment.pop("PYDANTIC_DISABLE_PLUGINS", None)

    def said(program: str) -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    model = "import pydantic\nclass Model(pydantic.BaseModel):\n    field: int\n"
    assert said(model) == "loaded\n"
    assert said(f"import {module}\n{model}") == ""
