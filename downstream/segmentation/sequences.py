"""The images of one case by sequence: which volume is T1, which FLAIR, and their common grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError, GeometryError
from downstream.cohort import read_image

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow
    from downstream.config import Task


def channel_of(image: VolumeRow) -> str:
    """Name of the sequence within its case, as the data set tells; empty when it tells none."""
    from data_registry.schema import CHANNEL

    return str(json.loads(image.facts).get(CHANNEL, ""))


def in_order(images: Sequence[VolumeRow], task: Task) -> tuple[VolumeRow, ...]:
    """The images of a case in the order of `task.sequences`.

    A sequence is the channel of that name (upper and lower case are the same), else the volume
    whose `sequence` it is.

    Args:
        images: Image volumes that one label volume describes.
        task: With sequences.

    Raises:
        DataError: DATA-29 naming the case and a sequence that it lacks.
        ConfigError: CONFIG-05 when several images of the case are of one sequence.
    """
    found = []
    for name in task.sequences:
        fitting = [row for row in images if channel_of(row).lower() == name.lower()] or [
            row for row in images if row.sequence.lower() == name.lower()
        ]
        case = f"the case of image {images[0].volume_id}, patient {images[0].subject_id},"
        if not fitting:
            held = ", ".join(sorted({channel_of(row) or row.sequence for row in images}))
            raise DataError(
                "DATA-29",
                f"task {task.name}: {case} lacks the sequence {name!r}; it has {held}.",
                fix="Leave it out with `where`, or ask for the sequences that all cases have.",
            )
        if len(fitting) > 1:
            raise ConfigError(
                "CONFIG-05",
                f"task {task.name}: {case} has {len(fitting)} images of the sequence {name!r}.",
                fix="Choose with `where`, or name channels as the data set does.",
            )
        found.append(fitting[0])
    return tuple(found)


def check_not_mixed(images: Sequence[VolumeRow], task: Task) -> None:
    """A task without sequences must not take the channels of one case for so many cases.

    Args:
        images: Image volumes that one label volume describes.
        task: Without sequences.

    Raises:
        ConfigError: CONFIG-05.
    """
    channels = sorted({channel_of(row) for row in images} - {""})
    if len(channels) > 1:
        raise ConfigError(
            "CONFIG-05",
            f"task {task.name}: mixed channels, the case of image {images[0].volume_id} has "
            f"{', '.join(channels)}.",
            fix=f"Set sequences: [{', '.join(channels)}], or those that are wanted.",
        )


def read_channels(registry: Registry, images: Sequence[VolumeRow]) -> npt.NDArray[np.float32]:
    """Channels [C, S, H, W] of a case in [0, 1], each by the window of its own volume.

    Raises:
        GeometryError: GEOMETRY-03 when they lie on different grids.
    """
    for row in images[1:]:
        if (row.num_slices, row.rows, row.columns) != (
            images[0].num_slices, images[0].rows, images[0].columns
        ):  # fmt: skip
            raise GeometryError(
                "GEOMETRY-03",
                f"image {row.volume_id} ({row.num_slices}x{row.rows}x{row.columns}) lies on "
                f"another grid than {images[0].volume_id}, a sequence of the same case.",
                fix="Resample the sequences of a case to one grid and ingest them again.",
            )
    return np.stack([read_image(registry, row) for row in images])
