"""A corpus of DICOM files with planted identifiers: the same seed gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.data_registry.deid_corpus.objects import SYNTAXES, VENDORS, Planted, Study
from tests.data_registry.deid_corpus.planter import Planter


def corpus(seed: int, patients: int) -> Iterator[Planted]:
    """Files of `patients`, nine kinds each.

    Args:
        seed: Of all values.
        patients: How many.
    """
    plant = Planter(seed)
    number = 0
    for index in range(patients):
        study = Study(plant, plant.new_patient(), number)
        vendors = [VENDORS[(index + k) % len(VENDORS)] for k in range(4)]
        syntaxes = [SYNTAXES[(index * 3 + k) % len(SYNTAXES)] for k in range(6)]
        for syntax, vendor in zip(syntaxes[:3], vendors[:3], strict=True):
            yield study.classic(syntax, vendor)
        yield study.enhanced(syntaxes[3], vendors[3])
        yield study.enhanced(syntaxes[4], vendors[0])
        yield study.mosaic(syntaxes[5])
        yield study.segmentation()
        yield study.report()
        yield study.burned_in()
        yield study.directory()
        number = study.number


def routine(seed: int, sizes: tuple[int, ...], slices: int) -> Iterator[Planted]:
    """Plain MR series, one patient a size, names in ASCII.

    Args:
        seed: Of all values.
        sizes: Rows and columns of each series.
        slices: Of each series.
    """
    plant = Planter(seed)
    number = 0
    for size in sizes:
        patient = plant.new_patient()
        patient.script = "ascii"
        study = Study(plant, patient, number)
        yield from study.routine(size, slices)
        number = study.number


def write(files: list[Planted], folder: Path) -> None:
    """One folder a patient, named like the patient."""
    for file in files:
        path = folder / file.name.rsplit("_", 1)[0] / file.name
        if file.kind == "directory":
            path = folder / f"disc{file.number}" / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
