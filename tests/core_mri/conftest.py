"""Gold values of fastMRI, and the arrays they were made from."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REFERENCES = Path(__file__).parents[1] / "references"


@pytest.fixture(scope="session")
def gold() -> dict[str, Any]:
    """What `tests/references/make_fastmri_gold.py` wrote."""
    return json.loads((REFERENCES / "fastmri_gold.json").read_text())


@pytest.fixture(scope="session")
def maker() -> ModuleType:
    """The script itself, for the arrays that went into fastMRI."""
    spec = importlib.util.spec_from_file_location("maker", REFERENCES / "make_fastmri_gold.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
