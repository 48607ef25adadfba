"""A reconstructed volume to MRD images, a slice each, placed where the scanner put the slice.

Columns of an image run along the readout (``read_dir``), rows along the phase encoding
(``phase_dir``), as MRD has it; ``position`` is that of the voxel at half of both sizes, in LPS mm,
as in the acquisitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from core_mri.kspace_inference import image_volume
from core_mri.version import __version__
from downstream.reconstruction.stream import Scan
from downstream.serving.results import NOT_DIAGNOSTIC
from downstream.serving.sources import Served

Datatype = Literal["float32", "uint16"]
_MOST = 4095
"""Largest pixel of whole numbers: the 12 bits that scanners show."""
_COPIED = (
    "measurement_uid", "patient_table_position", "acquisition_time_stamp", "physiology_time_stamp",
    "user_int", "user_float",
)  # fmt: skip
_COUNTERS = ("average", "contrast", "phase", "repetition", "set")


def images_of(
    scan: Scan, heads: Mapping[int, Any], served: Served, datatype: Datatype, first: int
) -> Iterator[bytes]:
    """Image messages without their number, in the order of slices.

    Args:
        scan: One volume.
        heads: Slice counter -> header of its first readout.
        served: What reconstructed it.
        datatype: ``float32`` magnitudes as reconstructed, or ``uint16`` scaled to 4095.
        first: Number of the first image.
    """
    import ismrmrd

    slices, height, width = scan.images.shape
    volume = image_volume(scan.images, scan.header, scan.shape, served.name)
    lps = volume.affine_lps
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    stated = scan.header.affine is not None
    thickness = scan.header.encoded_fov_mm[2] or float(lengths[2])
    largest = float(scan.images.max())
    scale = largest / _MOST if datatype == "uint16" and largest > 0 else 1.0
    attributes = _attributes(scan, served, largest / scale, scale).serialize()
    for index in range(slices):
        position = (lps @ (width // 2, height // 2, index, 1))[:3]
        head = _head_of(heads, position)
        pixels = _pixels(scan.images[index].T, datatype, scale)
        image = ismrmrd.Image.from_array(
            pixels,
            image_type=ismrmrd.IMTYPE_MAGNITUDE,
            image_index=first + index,
            image_series_index=1,
            field_of_view=(height * lengths[1], width * lengths[0], thickness),
            position=tuple(position if stated else head["position"]),
            read_dir=tuple(lps[:3, 1] / lengths[1] if stated else head["read_dir"]),
            phase_dir=tuple(lps[:3, 0] / lengths[0] if stated else head["phase_dir"]),
            slice_dir=tuple(head["slice_dir"]),
            slice=int(head["idx"]["slice"]) if len(heads) > 1 else index,
            **{name: int(head["idx"][name]) for name in _COUNTERS},
            **{name: _plain(head[name]) for name in _COPIED},
        )
        image.attribute_string = attributes
        yield image.to_bytes()


def _head_of(heads: Mapping[int, Any], position: npt.NDArray[np.float64]) -> Any:
    """Of the slice that lies there; of a slab its only one."""
    return min(heads.values(), key=lambda head: np.linalg.norm(head["position"] - position))


def _pixels(image: npt.NDArray[np.float32], datatype: Datatype, scale: float) -> Any:
    if datatype == "float32":
        return np.ascontiguousarray(image)
    return np.rint(image / scale).astype(np.uint16)


def _plain(value: Any) -> Any:
    return tuple(value.tolist()) if isinstance(value, np.ndarray) else value.item()


def _attributes(scan: Scan, served: Served, largest: float, scale: float) -> Any:
    """What goes along: what it is, how to show it, and that no diagnosis may rest on it."""
    import ismrmrd

    return ismrmrd.Meta(
        {
            "DataRole": "Image",
            "ImageProcessingHistory": ["core-mri", served.name],
            "Keep_image_geometry": 1,
            "WindowCenter": largest / 2,
            "WindowWidth": largest,
            "ImageType": "DERIVED\\PRIMARY\\M",
            "ContentQualification": "RESEARCH",
            "SequenceDescriptionAdditional": f"core-mri {served.name}",
            "ImageComments": f"core-mri {__version__}, {served.name}, "
            f"{scan.sampling.acceleration:.2f}-fold undersampled. Research use only, "
            f"{NOT_DIAGNOSTIC}.",
            "CoreMRIScale": scale,
        }
    )
