"""Weights folders: save, load, verify."""

from __future__ import annotations

from core_mri.weights.folder import load_model, save_model

__all__ = ["load_model", "save_model"]
