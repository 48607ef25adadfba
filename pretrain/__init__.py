"""Self-supervised training of the encoder on the slices of a registry: DINO, iBOT and KoLeo.

Importing this package is light: a name loads its module, and with it torch, on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig
    from pretrain.train import train

_HOME = {"PretrainConfig": "pretrain.config", "train": "pretrain.train"}

__all__ = ["PretrainConfig", "train"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'pretrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
