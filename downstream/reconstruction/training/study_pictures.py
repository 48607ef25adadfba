"""Pictures of a study, kept beside its cells, so that a later start shows those of earlier ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from core_mri.runs import write_atomically
from downstream.reconstruction.training.testing import Tested


def save_picture(folder: Path, key: str, rate: float, volume: Tested) -> None:
    """Keep the middle slice that a cell made of a volume.

    Args:
        folder: Of the cells.
        key: Of the cell.
        rate: Acceleration.
        volume: What to keep.
    """
    held = io.BytesIO()
    np.savez_compressed(
        held, patient=volume.patient, volume=volume.volume, reference=volume.reference,
        image=volume.image, metrics=list(volume.scores), values=list(volume.scores.values()),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(_path(folder, key, rate), held.getvalue())


def load_picture(folder: Path, key: str, rate: float) -> Tested | None:
    """What `save_picture` kept; None when there is nothing."""
    path = _path(folder, key, rate)
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as kept:
        return Tested(
            patient=str(kept["patient"]),
            volume=str(kept["volume"]),
            scores=dict(zip(kept["metrics"].tolist(), kept["values"].tolist(), strict=True)),
            reference=kept["reference"],
            image=kept["image"],
        )


def _path(folder: Path, key: str, rate: float) -> Path:
    return folder / f"{key}-{rate:g}x.npz"
