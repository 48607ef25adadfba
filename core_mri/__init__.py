"""core-mri: foundation models for magnetic resonance imaging.

Importing this package is light: every name loads its module, and with it torch or nibabel, on first
use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from core_mri.errors import CoreMRIError
from core_mri.version import __version__

if TYPE_CHECKING:
    from core_mri import metrics, physics
    from core_mri.files import read_volume, write_volume
    from core_mri.models import create_model, list_models
    from core_mri.predictor import Predictor
    from core_mri.volume import Volume
    from core_mri.weights import load_model, save_model

_HOME = {
    "Predictor": "core_mri.predictor",
    "Volume": "core_mri.volume",
    "create_model": "core_mri.models",
    "list_models": "core_mri.models",
    "load_model": "core_mri.weights",
    "metrics": "",
    "physics": "",
    "read_volume": "core_mri.files",
    "save_model": "core_mri.weights",
    "write_volume": "core_mri.files",
}

__all__ = [
    "CoreMRIError",
    "Predictor",
    "Volume",
    "__version__",
    "create_model",
    "list_models",
    "load_model",
    "metrics",
    "physics",
    "read_volume",
    "save_model",
    "write_volume",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'core_mri' has no attribute {name!r}")
    if not _HOME[name]:
        return importlib.import_module(f"core_mri.{name}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
