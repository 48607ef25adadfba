"""What a network with an encoder inside saw, kept beside its weights, so that it warns of others.

The moments are those of reference images; the threshold comes from what users will judge:
reconstructions, of simulated k-space of patients who are not in the moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from core_mri.models.reconstruction import Reconstructor
from core_mri.off_distribution import evenly
from core_mri.preprocess import percentile_window
from core_mri.training_statistics import save_statistics
from core_mri.weights.folder import read_config, update_card
from data_registry.similarity.features import EncoderFeatures
from data_registry.similarity.training import training_statistics
from downstream.reconstruction.training.batches import fixed_lines, kept
from downstream.reconstruction.training.config import Undersampling
from downstream.reconstruction.training.sets import Sets
from downstream.reconstruction.training.slices import SimulatedSlices, Slice

if TYPE_CHECKING:
    from data_registry.schema import VolumeRow
    from data_registry.slices import SliceSample

Image = npt.NDArray[np.float32]
SLICES, JUDGED = 2000, 60
"""Training slices that are embedded, and volumes of which at most 16 slices are reconstructed for
the threshold."""
SEED = 30_000
"""Of coils, phases, noise and masks of these slices."""


def keep_statistics(
    folder: Path, network: Reconstructor, sets: Sets, settings: Undersampling
) -> None:
    """Write them beside the weights, and into their card; or into the card why there are none.

    Args:
        folder: Of the weights.
        network: As it was saved.
        sets: What it was trained on.
        settings: Undersampling of the training.
    """
    context = getattr(network, "context", None)
    train, held_out = sets.training, sets.validation
    reason = ""
    if context is None:
        reason = "the network has no encoder"
    elif not isinstance(train, SimulatedSlices):
        reason = "they come from the images of a registry, and raw data files were trained on"
    elif len(set(train.patients)) < 2:
        reason = "all training slices are of one patient"
    if reason:
        told = f"None are kept: {reason}. No warning of scans unlike those of training."
        update_card(folder, {"statistics": told})
        return
    assert isinstance(train, SimulatedSlices)
    assert context is not None
    statistics = training_statistics(
        EncoderFeatures(context.encoder, "inside"),
        read_config(folder)["sha256"],
        References(train),
        References(held_out) if isinstance(held_out, SimulatedSlices) else None,
        most_slices=SLICES,
        most_judged=JUDGED,
        judged_as=lambda own: Reconstructions(own.slices, network, settings),
    )
    save_statistics(statistics, folder)
    update_card(folder, {"statistics": statistics.card()})


class References:
    """Images that slices of simulated k-space are of, for `data_registry.similarity.training`.

    Args:
        slices: Of a registry.
    """

    def __init__(self, slices: SimulatedSlices) -> None:
        self.slices = slices
        self._numbers = slices.dataset.volume_numbers()

    @property
    def volumes(self) -> Sequence[VolumeRow]:
        """The volumes."""
        return self.slices.dataset.volumes

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, position: int) -> SliceSample:
        return replace(self.slices.dataset[position], image=self._image(position))

    def volume_numbers(self) -> npt.NDArray[np.integer]:
        """Of each slice, the position of its volume in `volumes`."""
        return self._numbers

    def _image(self, position: int) -> Image:
        found = self._read(position).reference
        assert found is not None
        return found.numpy()

    def _read(self, position: int) -> Slice:
        return self.slices.read(position, np.random.default_rng((SEED, position)))


class Reconstructions(References):
    """What a network makes of them, in the intensity window of the volume, as users judge it.

    Only the slices that are judged are reconstructed, and the window is theirs. Accelerations take
    turns by volume.

    Args:
        slices: Of a registry.
        network: The network.
        settings: Undersampling.
    """

    def __init__(
        self, slices: SimulatedSlices, network: Reconstructor, settings: Undersampling
    ) -> None:
        super().__init__(slices)
        self._network, self._settings = network, settings
        self._volume = lru_cache(1)(self._judged)

    def _image(self, position: int) -> Image:
        return self._volume(int(self._numbers[position]))[position]

    def _judged(self, volume: int) -> dict[int, Image]:
        positions = evenly(np.flatnonzero(self._numbers == volume)).tolist()
        images = np.stack([self._reconstructed(position, volume) for position in positions])
        if images.any():
            low, high = percentile_window(images)
            images = np.clip((images - low) / (high - low), 0, 1)
        return dict(zip(positions, images, strict=True))

    @torch.inference_mode()
    def _reconstructed(self, position: int, volume: int) -> Image:
        own, rates = self._read(position), self._settings.accelerations
        mask = fixed_lines(
            self._settings, volume % len(rates), own.kspace.shape[-1], (SEED, volume)
        )
        data = kept(own.kspace, mask)
        if not data.any():
            return np.zeros(own.size, np.float32)
        device = next(self._network.parameters()).device
        image = self._network.reconstruct(data[None].to(device), mask.to(device), size=own.size)[0]
        found: Image = image.float().cpu().numpy()
        return found
