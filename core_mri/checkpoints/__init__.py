"""Checkpoints of a training that survives its workers: storage, format, saving and finding."""

from core_mri.checkpoints.keeper import Checkpoints

__all__ = ["Checkpoints"]
