"""Why a series is no part of a plan: the first reason that holds, so that counts add up."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data_registry.label_words import around
from data_registry.planning.deny_patients import Denied
from data_registry.planning.idc_index import MR_IMAGE

if TYPE_CHECKING:
    import pyarrow

_SIMULATED = ("gbm_dsc_mri_dro", "pseudo_phi_dicom_data")
"""Collections of digital phantoms and of planted identifiers."""
_KINDS = {
    "localizer": "localizer",
    "calibration": "calibration or field map",
    "spectroscopy": "spectroscopy",
    "derived": "derived from other series",
}


def reasons(
    series: pyarrow.Table,
    *,
    species: Mapping[str, str],
    min_slices: int,
    excluded: Collection[str],
    licences: Collection[str],
    denied: Sequence[Denied],
    regions: Collection[str],
) -> npt.NDArray[np.object_]:
    """A reason for each series ``[N]``, empty for those that may be chosen.

    Args:
        series: The index with labels and the column ``licence``.
        species: Collection to species; only humans may be chosen.
        min_slices: Fewer are left out.
        excluded: Collections the user excludes.
        licences: Licences that may be chosen.
        denied: Whose patients are left out, with all their series.
        regions: Wanted regions with all that lies in them; empty for all.
    """

    def column(name: str) -> npt.NDArray[np.object_]:
        return np.array(series.column(name).to_pylist(), dtype=object)

    collection, region, kind = column("collection"), column("region"), column("kind")
    licence, patient = column("licence"), column("patient_id")
    found = np.full(len(region), "", dtype=object)

    def mark(holds: npt.NDArray[np.bool_], reason: str) -> None:
        found[(found == "") & holds] = reason

    mark(column("storage_class") != MR_IMAGE, "no MR image (capture or raw data)")
    mark(~np.isin(column("photometric"), ["MONOCHROME1", "MONOCHROME2"]), "color image")
    mark(column("address") == "", "no address to download from")
    human = np.array([species.get(name, "") == "Human" for name in collection])
    mark(~human, "not human, or a phantom collection")
    mark((region == "phantom") | np.isin(collection, _SIMULATED), "phantom or simulated")
    for name, reason in _KINDS.items():
        mark(kind == name, reason)
    mark(column("num_slices") < min_slices, f"fewer than {min_slices} slices")
    for name in sorted(set(licence) - set(licences)):
        mark(licence == name, f"licence {name}")
    for name in sorted(excluded):
        mark(collection == name, f"collection {name} excluded")
    for one in denied:
        holds = np.array([name in one.patients for name in patient])
        mark(holds, f"patient of {one.name}: {one.why}")
    if regions:
        mark(~np.array([wanted(name, regions) for name in region]), "region not asked for")
    return found


def wanted(region: str, regions: Collection[str]) -> bool:
    """Whether a region is asked for, or lies in one that is."""
    return region in regions or any(name in regions for name in around(region))
