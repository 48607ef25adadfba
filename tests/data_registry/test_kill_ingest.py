"""The kill script on a few moments; `python tests/data_registry/kill_ingest.py` does fifty."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments_the_registry_is_the_same() -> None:
    script = Path(__file__).with_name("kill_ingest.py")
    done = subprocess.run(
        [sys.executable, str(script), "--moments", "5", "--seed", "1"],
        stdout=subprocess.PIPE, text=True, cwd=script.parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "5 of 5 registries identical" in done.stdout
