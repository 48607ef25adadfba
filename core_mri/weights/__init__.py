"""Weights folders, and checkpoints of other projects: save, load, verify."""

from __future__ import annotations

from core_mri.weights.folder import save_model, update_card
from core_mri.weights.sources import load_model

__all__ = ["load_model", "save_model", "update_card"]
