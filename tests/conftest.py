"""Makes the builders that several test files share importable, whatever the import mode."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

# A slow machine, or an emulated one, is no fault of the code.
settings.register_profile("esp-gw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("esp-gw")
