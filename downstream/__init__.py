"""Transfer of an encoder to tasks, and the evidence that it helped.

Importing this package is light: `finetune` and `evaluate` load torch on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from downstream.config import FinetuneConfig, SuiteConfig, Task
    from downstream.evaluation.suite import evaluate, finetune

_HOME = {
    "FinetuneConfig": "downstream.config",
    "SuiteConfig": "downstream.config",
    "Task": "downstream.config",
    "evaluate": "downstream.evaluation.suite",
    "finetune": "downstream.evaluation.suite",
}

__all__ = ["FinetuneConfig", "SuiteConfig", "Task", "evaluate", "finetune"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'downstream' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
