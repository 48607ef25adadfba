"""The verb `core-mri segment`: a scan in, a mask on its grid out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from core_mri.automatic import AutomaticMasks
from core_mri.errors import ConfigError, DataError

ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha")


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Segment a scan: SOURCE IMAGE [--box ... | --point ... | --automatic] --out FILE."""

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
    """i0,j0,k0,i1,j1,k1[,OBJECT]: 0-based voxel indices, the end not in it; one object each, or of
    the object with that number."""
    point: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """i,j,k,1[,OBJECT] inside or i,j,k,0[,OBJECT] outside; all of one object, or of that number."""
    mask: Path | None = None
    """An earlier answer on the same grid: slices with points or boxes are answered anew from it."""
    automatic: bool = False
    """Find every object by a grid of points, without prompts; 1 is the largest."""
    masks: AutomaticMasks = field(default_factory=AutomaticMasks)
    """With --automatic."""
    world: bool = False
    """Coordinates are RAS+ mm (as in NIfTI; DICOM's LPS has the signs of x and y turned), taken to
    the nearest voxel; of a box both corners are in it."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""


def main(arguments: Sequence[str]) -> int:
    """The verb."""
    options = tyro.cli(
        SegmentOptions,
        prog="core-mri segment",
        args=list(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    boxes = [_numbers("box", text, 6) for text in options.box]
    points = [_numbers("point", text, 4) for text in options.point]
    is_seg = options.out.name.lower().endswith(".dcm")
    if not (is_seg or options.out.name.lower().endswith(ENDINGS)):
        raise ConfigError(
            "CONFIG-05", f"--out {options.out}: the ending must be {', '.join(ENDINGS)} or .dcm."
        )
    if options.masks != AutomaticMasks() and not options.automatic:
        raise ConfigError("CONFIG-05", "thresholds of masks need --automatic.")
    from core_mri.files import read_volume, write_volume
    from core_mri.files.segmentation import matching_series
    from core_mri.predictor import Predictor
    from core_mri.runs import write_atomically
    from core_mri.weights import load_model

    volume = read_volume(options.image)
    if is_seg:
        matching_series(volume, options.image)
    if options.world:
        inverse = np.linalg.inv(volume.affine)
        points = [[*_voxel(inverse, point[:3]), *point[3:]] for point in points]
        corners = [np.array([_voxel(inverse, b[:3]), _voxel(inverse, b[3:6])]) for b in boxes]
        boxes = [
            [*pair.min(0).tolist(), *(pair.max(0) + 1).tolist(), *box[6:]]
            for pair, box in zip(corners, boxes, strict=True)
        ]
    elif any(value != int(value) for prompt in [*boxes, *points] for value in prompt):
        raise ConfigError(
            "CONFIG-05", "voxel indices are whole numbers.", fix="For millimetres add --world."
        )
    earlier = None if options.mask is None else read_volume(options.mask)
    others = [read_volume(path) for path in options.sequence]
    model = load_model(options.source, device=options.device)
    try:
        mask = Predictor(model).segment(
            volume,
            boxes=_by_object("box", boxes, 6),
            points=_by_object("point", points, 4),
            mask=earlier,
            automatic=options.masks if options.automatic else False,
            sequences=others,
        )
    except DataError as error:
        raise type(error)(error.code, f"{options.image}: {error.message}", fix=error.fix) from None
    names: dict[int, str] = getattr(model, "labels", {})
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
    """`count` numbers, and one more where the object is given."""
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (count, count + 1) or not np.isfinite(values).all():
        raise ConfigError(
            "CONFIG-05",
            f"--{flag} takes {count} numbers with commas, one more names the object, got {text!r}.",
        )
    return values


def _by_object(
    flag: str, prompts: Sequence[Sequence[float]], count: int
) -> list[list[int]] | dict[int, list[list[int]]]:
    whole = [[int(value) for value in prompt] for prompt in prompts]
    named = [prompt for prompt in whole if len(prompt) > count]
    if not named:
        return whole
    if len(named) < len(whole):
        raise ConfigError("CONFIG-05", f"some --{flag} name their object and some do not.")
    objects: dict[int, list[list[int]]] = {}
    for *prompt, number in named:
        objects.setdefault(number, []).append(prompt)
    return objects


def _voxel(inverse: np.ndarray, mm: Sequence[float]) -> list[int]:
    index: list[int] = np.rint(inverse[:3, :3] @ mm + inverse[:3, 3]).astype(int).tolist()
    return index
