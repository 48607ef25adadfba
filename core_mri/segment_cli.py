"""The verb `core-mri segment`: a scan in, a mask on its grid out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from core_mri.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Segment a scan: SOURCE IMAGE [--box ...] [--point ...] --out mask.nii.gz|seg.dcm."""

    source: tyro.conf.Positional[str]
    """Weights: of a segmentation model, or of a promptable one with boxes or points."""
    image: tyro.conf.Positional[Path]
    """A file or folder of one volume."""
    sequence: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """For weights of several sequences: the others, in the order of their model card."""
    out: Path
    """.nii, .nii.gz, .nrrd, .mha, or .dcm for a DICOM segmentation of a DICOM series. The names of
    the labels go into the .dcm, else into a .tsv beside the mask."""
    box: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """i0,j0,k0,i1,j1,k1: 0-based voxel indices, the end not in it; one object each."""
    point: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """i,j,k,1 inside or i,j,k,0 outside."""
    world: bool = False
    """Coordinates are RAS+ mm (as in NIfTI; DICOM's LPS has the signs of x and y turned), taken to
    the nearest voxel; of a box both corners are in it."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""


def main(arguments: Sequence[str]) -> int:
    """The verb."""
    options = tyro.cli(SegmentOptions, prog="core-mri segment", args=list(arguments))
    boxes = [_numbers("box", text, 6) for text in options.box]
    points = [_numbers("point", text, 4) for text in options.point]
    from core_mri.files import read_volume, write_volume
    from core_mri.predictor import Predictor
    from core_mri.runs import write_atomically
    from core_mri.weights import load_model

    volume = read_volume(options.image)
    if options.world:
        inverse = np.linalg.inv(volume.affine)
        points = [[*_voxel(inverse, point[:3]), point[3]] for point in points]
        corners = [np.array([_voxel(inverse, b[:3]), _voxel(inverse, b[3:])]) for b in boxes]
        boxes = [[*pair.min(0).tolist(), *(pair.max(0) + 1).tolist()] for pair in corners]
    elif any(value != int(value) for prompt in [*boxes, *points] for value in prompt):
        raise ConfigError(
            "CONFIG-05", "voxel indices are whole numbers.", fix="For millimetres add --world."
        )
    model = load_model(options.source, device=options.device)
    mask = Predictor(model).segment(
        volume,
        boxes=[[int(value) for value in box] for box in boxes],
        points=[[int(value) for value in point] for point in points],
        sequences=[read_volume(path) for path in options.sequence],
    )
    names: dict[int, str] = getattr(model, "labels", {})
    is_seg = options.out.suffix == ".dcm"
    write_volume(mask, options.out, like=options.image if is_seg else volume, labels=names)
    if names and not is_seg:
        table = "".join(f"{value}\t{name}\n" for value, name in names.items())
        write_atomically(_table_of(options.out), f"index\tname\n{table}".encode())
    for value, count in zip(*np.unique(mask.array, return_counts=True), strict=True):
        if value:
            ml = count * abs(np.linalg.det(volume.affine[:3, :3])) / 1000
            name = f" {names[value]}" if value in names else ""
            print(f"{value}{name}: {count} voxels, {ml:.3g} ml")
    if not mask.array.any():
        print("nothing found: the mask is empty", file=sys.stderr)
    print(options.out)
    return 0


def _table_of(path: Path) -> Path:
    """The lookup table of a mask, beside it (BIDS: a TSV of index and name)."""
    return path.with_name(path.name.removesuffix(".gz").rpartition(".")[0] + ".tsv")


def _numbers(flag: str, text: str, count: int) -> list[float]:
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise ConfigError("CONFIG-05", f"--{flag} takes {count} numbers with commas, got {text!r}.")
    return values


def _voxel(inverse: np.ndarray, mm: Sequence[float]) -> list[int]:
    index: list[int] = np.rint(inverse[:3, :3] @ mm + inverse[:3, 3]).astype(int).tolist()
    return index
