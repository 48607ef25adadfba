"""What every test may ask for: real scans when they are there, small phantoms always."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
pytest.register_assert_rewrite("tests.downstream.dicom_service")

LONG = ("tests/test_readme.py", "tests/pretrain/", "tests/downstream/")
"""What takes longest goes first: a file stays in one process, and the other should not wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        found = (i for i, start in enumerate(LONG) if item.nodeid.startswith(start))
        return next(found, len(LONG))

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans named by CORE_MRI_DATA."""
    folder = os.environ.get("CORE_MRI_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CORE_MRI_DATA is not set to a folder of real scans")
    return Path(folder)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two cores and many small operations: threads would wait for each other."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
