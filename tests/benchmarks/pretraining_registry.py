"""Registries of packaged configurations, made of CORE_MRI_DATA.

    python tests/benchmarks/pretraining_registry.py real_cpu --out runs/real_cpu
    python tests/benchmarks/pretraining_registry.py core_mri_tiny --out runs/core_mri_tiny

Volumes of equal spacing in all directions are cut into axial, coronal and sagittal slices, every
second one and none of them interpolated, so that ``plane`` is a label that has to be seen. All
others are taken as they are, raw data are not. The keys are public, and with them the splits.

``real_cpu`` leaves out hearts (Sunnybrook); half of the patients train, three tenths validate, a
fifth are test patients that no task on this data may train on. ``core_mri_tiny`` takes what may be
passed on, with the key of the suite ``core_mri_data``: its validation and test patients are those
of the suite, so they are not trained on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import tyro

import core_mri
from core_mri.volume import SLICE_ORIENTATION, Volume
from data_registry import IngestConfig, ingest
from data_registry.catalogue import Registry
from data_registry.source_list import Source, load_sources
from data_registry.splits import DEFAULT_FRACTIONS


class Recipe(NamedTuple):
    """What a registry is made of."""

    key: str
    """Public on purpose: the data are."""
    fractions: tuple[float, float, float]
    """Of patients: train, validation, test."""
    left_out: tuple[str, ...]
    """Sources."""


STEP = 2
"""Of every so many slices that are cut one is kept: the largest spacing then names the plane."""
RAW = ("sigpy_mri_tutorial", "gadgetron")
RECIPES = {
    # This key puts the two multiple sclerosis patients on different sides.
    "real_cpu": Recipe("1234" * 16, (0.5, 0.3, 0.2), ("sunnybrook", *RAW)),
    "core_mri_tiny": Recipe(
        f"{570:064x}",
        DEFAULT_FRACTIONS,
        ("knee_mese", "renalsegmentor", "dicom2nifti", "tcia_prostatex", *RAW),
    ),
}
CUT = {
    "msd_hippocampus": ("brain_hippocampus_msd/images", "hippocampus_[0-9]+"),
    "icbm152": ("brain_icbm152", "brain_icbm152"),
    "open_ms_data": ("brain_ms_lesion", "patient[0-9]+"),
}
"""Sources of equal spacing: where they lie, and what names a patient."""


def main(
    recipe: Annotated[Literal["real_cpu", "core_mri_tiny"], tyro.conf.Positional], out: Path
) -> None:
    """Write the slices and the registry.

    Args:
        recipe: Configuration that it is for.
        out: Folder for ``scans/`` and ``registry/``.
    """
    made = RECIPES[recipe]
    sources = [s for s in load_sources("core_mri_data") if s.role == "image"]
    kept: list[Source] = []
    for source in sources:
        if source.name in CUT:
            kept.append(_cut(source, out / "scans" / source.name))
        elif source.name not in made.left_out:
            kept.append(source)
    key = out / "registry.key"
    key.write_text(made.key + "\n", encoding="ascii")
    key.chmod(0o600)
    Registry.create(out / "registry", fractions=made.fractions)
    ingest(IngestConfig(registry=out / "registry", sources=tuple(kept), key_file=key, jobs=1))


def _cut(source: Source, folder: Path) -> Source:
    """The files of a source in three planes, and the source that they are."""
    place, patient = CUT[source.name]
    root = Path(source.root)
    for path in sorted((root / place).rglob("*.nii.gz")):
        if any(word in path.name for word in ("label", "mask")):
            continue
        volume = core_mri.read_volume(path)
        for plane, codes in SLICE_ORIENTATION.items():
            target = (
                folder / path.relative_to(root).with_suffix("").with_suffix("") / f"{plane}.nii.gz"
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            core_mri.write_volume(_every_second(volume.reorient(codes)), target)
    return dataclasses.replace(
        source, root=str(folder), include=(), exclude=(), subject=f"(?P<subject>{patient})"
    )


def _every_second(volume: Volume) -> Volume:
    """Slices of the first axis, as the third axis of a volume."""
    array = np.asarray(volume.array)[::STEP].transpose(2, 1, 0)
    affine = volume.affine[:, [2, 1, 0, 3]].copy()
    affine[:, 2] *= STEP
    return Volume(array=np.ascontiguousarray(array), affine=affine)


if __name__ == "__main__":
    tyro.cli(main)
