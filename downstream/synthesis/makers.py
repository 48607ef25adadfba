"""What turns an anatomy into a scan: the physics generator, or a trained network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from core_mri.devices import select_device
from core_mri.errors import ConfigError, DataError, WeightsError
from core_mri.models.generator import Generator
from core_mri.physics.label_to_image import Physics, Range, deformed, scan_of
from core_mri.slice_grid import mask_to_square, patch_grid
from core_mri.volume import Volume
from core_mri.weights import load_model
from core_mri.weights.folder import find_folder, read_config
from downstream.segmentation.examples import mixed
from downstream.segmentation.structures import without_side


@dataclass(frozen=True, eq=False)
class Scan:
    """A synthetic scan with the labels it was made from, voxel by voxel."""

    channels: npt.NDArray[np.float32]
    """[Q, S, side, side] in [0, 1]."""
    labels: Volume
    """[S, side, side]."""


class Maker(Protocol):
    """Makes scans."""

    sequences: tuple[str, ...]
    subjects: tuple[str, ...]
    """Pseudonyms of the patients it learned from."""

    @property
    def facts(self) -> dict[str, Any]:
        """For the provenance."""

    def side(self, labels: Volume) -> int:
        """Rows and columns of what it makes of a label map [S, H, W]."""

    def make(self, labels: Volume, seed: int) -> Scan:
        """A scan of labels [S, side, side]."""


class PhysicsMaker:
    """`core_mri.physics.label_to_image`; every sequence has a contrast of its own.

    Args:
        physics: How far scans vary.
        sequences: Names of the sequences.
        names: Class to name; those that differ in left and right alone share one signal.
        signals: Sequence to name, with * and ?, to range of the mean signal.

    Raises:
        ConfigError: CONFIG-05 when signals are told for a name that no class has.
    """

    subjects: tuple[str, ...] = ()

    def __init__(
        self,
        physics: Physics,
        sequences: tuple[str, ...],
        names: Mapping[int, str] | None = None,
        signals: Mapping[str, Mapping[str, Range]] | None = None,
    ) -> None:
        self.physics = physics
        self.sequences = sequences
        self.signals = signals or {}
        both: dict[str, list[int]] = defaultdict(list)
        for value, name in (names or {}).items():
            both[without_side(name)].append(value)
        self._groups = [values for values in both.values() if len(values) > 1]
        self._means = {
            sequence: _ranges(names or {}, self.signals.get(sequence, {})) for sequence in sequences
        }

    @property
    def facts(self) -> dict[str, Any]:
        """As `Maker.facts`."""
        told = {"signals": self.signals} if self.signals else {}
        return {"kind": "physics", **asdict(self.physics), **told}

    def side(self, labels: Volume) -> int:
        """The larger of rows and columns: voxels are those of the label map."""
        return max(labels.shape[1:])

    def make(self, labels: Volume, seed: int) -> Scan:
        """As `Maker.make`."""
        given = torch.from_numpy(labels.array.astype(np.int64))
        channels = [
            scan_of(
                given,
                mixed(seed, number),
                self.physics,
                groups=self._groups,
                means=self._means[sequence],
            )
            for number, sequence in enumerate(self.sequences)
        ]
        return Scan(torch.stack(channels).numpy(), labels)


class TrainedMaker:
    """A released generator.

    Args:
        source: Its weights folder.
        device: Where it runs.

    Raises:
        WeightsError: WEIGHTS-01 as `load_folder`, WEIGHTS-03 for weights that are no generator.
    """

    def __init__(self, source: str, device: str) -> None:
        model = load_model(source, device=str(select_device(device)))
        if not isinstance(model, Generator):
            raise WeightsError(
                "WEIGHTS-03",
                f"{source}: holds a {type(model).__name__}, not a generator.",
                fix="Train one with `core-mri synthesize train`, or use physics.",
            )
        self.model = model
        self.card: dict[str, Any] = dict(model.card)  # type: ignore[arg-type]
        self.sequences = model.sequences
        self.subjects = tuple(self.card.get("subjects", ()))
        self._sha256 = read_config(find_folder(Path(source)))["sha256"]

    @property
    def facts(self) -> dict[str, Any]:
        """As `Maker.facts`."""
        return {"kind": self.model.config.kind, "sha256": self._sha256}

    def check_labels(self, names: dict[int, str]) -> None:
        """Refuse label maps of other classes than it was trained on.

        Raises:
            DataError: SYNTH-06.
        """
        if names != self.model.labels:
            raise DataError(
                "SYNTH-06",
                f"the generator was trained on the labels {self.model.labels}, the label map has "
                f"{names}.",
                fix="Use the same structures, in the same order, or train another generator.",
            )

    def check_sequences(self, sequences: tuple[str, ...]) -> None:
        """Refuse other sequences than it makes.

        Raises:
            DataError: SYNTH-06.
        """
        if sequences != self.sequences:
            raise DataError(
                "SYNTH-06",
                f"the generator makes the sequences {list(self.sequences)}, asked for were "
                f"{list(sequences)}.",
                fix="Use a task with the generator's sequences.",
            )

    def side(self, labels: Volume) -> int:
        """The size it was trained at."""
        del labels
        return self.model.config.image_size

    def make(self, labels: Volume, seed: int) -> Scan:
        """As `Maker.make`."""
        given = torch.from_numpy(labels.array.astype(np.int64))
        device = next(self.model.parameters()).device
        images = self.model.generate(given.to(device), seed).cpu().numpy()
        return Scan(np.ascontiguousarray(images.swapaxes(0, 1)), labels)


def _ranges(names: Mapping[int, str], signals: Mapping[str, Range]) -> dict[int, Range]:
    """Range of the signal by class, where one is told.

    Raises:
        ConfigError: CONFIG-05 when a pattern fits no name.
    """
    for pattern in signals:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            raise ConfigError(
                "CONFIG-05",
                f"signals: no structure or tissue is called {pattern!r}; there are "
                f"{', '.join(names.values())}.",
            )
    found = {}
    for value, name in names.items():
        fitting = [told for pattern, told in signals.items() if fnmatchcase(name, pattern)]
        if fitting:
            found[value] = fitting[0]
    return found


def moved(labels: Volume, seed: int, physics: Physics) -> Volume:
    """A label map [S, side, side] turned, scaled, shifted and bent, all slices alike."""
    given = torch.from_numpy(labels.array.astype(np.int64))
    array = deformed(given, seed, physics).numpy()
    return labels.with_array(array.astype(labels.array.dtype))


def on_square(labels: Volume, side: int) -> Volume:
    """A label map [S, H, W] on a square grid [S, side, side], padded with 0; nearest.

    Edits come after it, so that their volume is exact on the grid that the scan is made on.
    """
    rows, columns = labels.shape[1:]
    array = mask_to_square(labels.array.astype(np.uint8), side).numpy().astype(np.uint8)
    return Volume(array, labels.affine @ patch_grid(rows, columns, side, 1), kind="label")
