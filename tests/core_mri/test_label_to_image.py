"""Promises of the physics generator: a function of its seed, labels that stay, real physics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from core_mri.errors import ConfigError
from core_mri.physics.label_to_image import Physics, label_to_image
from core_mri.physics.motion import Artefacts, corrupted
from core_mri.physics.phantoms import phantom_volume

STILL = Physics(
    rotation=0, scale=0, shift=0, displacement=0, spread=(0, 0), blur_px=(0.05, 0.05),
    thickness=(0, 0), bias_ratio=(1, 1), log_gamma=0, resolution=(1, 1), noise=(0, 0),
    artefact_chance=0,
)  # fmt: skip
"""Contrast alone is drawn."""


@pytest.fixture(scope="module")
def labels() -> Tensor:
    volume = phantom_volume("brain", 3, "T1", size=64, num_slices=5, seed=1)[1]
    return torch.from_numpy(volume.array.astype(np.int64)).permute(2, 0, 1)


class TestSeed:
    def test_same_seed_same_scan(self, labels: Tensor) -> None:
        first, second = (label_to_image(labels, 7) for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])

    def test_other_seed_other_scan(self, labels: Tensor) -> None:
        assert (label_to_image(labels, 7)[0] - label_to_image(labels, 8)[0]).abs().mean() > 0.02

    def test_neither_input_nor_global_generator_moves(self, labels: Tensor) -> None:
        before, state = labels.clone(), torch.random.get_rng_state()
        label_to_image(labels, 7)
        assert torch.equal(labels, before)
        assert torch.equal(torch.random.get_rng_state(), state)


class TestLabels:
    @pytest.mark.parametrize("seed", range(5))
    def test_values_are_never_invented(self, labels: Tensor, seed: int) -> None:
        image, moved = label_to_image(labels * 501, seed)
        assert set(moved.unique().tolist()) <= set((labels * 501).unique().tolist())
        assert moved.dtype == labels.dtype
        assert image.shape == labels.shape
        assert image.min() >= 0
        assert image.max() <= 1

    def test_without_movement_they_stay(self, labels: Tensor) -> None:
        assert torch.equal(label_to_image(labels, 0, STILL)[1], labels)

    def test_picture_follows_moved_labels(self, labels: Tensor) -> None:
        """Without noise a tissue is one signal but at its edges, where its moved label is."""
        moving = replace(STILL, rotation=20, shift=0.1, scale=0.2, displacement=0.02)
        image, moved = label_to_image(labels, 4, moving)
        assert not torch.equal(moved, labels)
        assert _explained(image, moved) > 0.9
        assert _explained(image, labels) < 0.7

    def test_all_slices_are_one_scan(self, labels: Tensor) -> None:
        tripled = labels[2:3].expand(3, -1, -1).contiguous()
        moved = label_to_image(tripled, 5)[1]
        assert torch.equal(moved[0], moved[1])
        assert torch.equal(moved[0], moved[2])

    def test_groups_share_a_signal(self, labels: Tensor) -> None:
        physics = replace(STILL, background_chance=1.0)
        image, moved = label_to_image(labels, 3, physics, groups=[(2, 3)])
        assert abs(image[moved == 2].median() - image[moved == 3].median()) < 0.02
        image, moved = label_to_image(labels, 3, physics)
        assert abs(image[moved == 2].median() - image[moved == 3].median()) > 0.05


class TestPhysics:
    def test_noise_has_the_deviation_asked_for(self) -> None:
        flat = torch.ones(1, 128, 128, dtype=torch.int64)
        flat[:, :8] = 2  # so that the window is not empty
        drawn = replace(STILL, mean=(1, 1), noise=(0.05, 0.05), background_chance=0)
        noisy = _unwindowed(flat, drawn)
        assert abs(float(noisy[:, 32:96, 32:96].std()) - 0.05) < 0.005

    def test_measured_part_limits_the_spectrum(self, labels: Tensor) -> None:
        image = label_to_image(
            labels, 1, replace(STILL, resolution=(0.4, 0.4), spread=(0.08, 0.08))
        )
        spectrum = torch.fft.fft2(image[0][2] - image[0][2].mean()).abs()
        far = torch.fft.fftfreq(64).abs() > 0.25
        assert spectrum[far][:, far].mean() < 0.02 * spectrum[~far][:, ~far].mean()

    def test_motion_without_movement_is_the_transform(self, labels: Tensor) -> None:
        images = labels.float() / 4
        quiet = Artefacts(np.random.default_rng(0))
        assert torch.allclose(
            corrupted(images, quiet), torch.fft.fft2(images, norm="ortho"), atol=1e-5
        )

    def test_a_shift_of_all_lines_moves_the_picture(self, labels: Tensor) -> None:
        images = labels.float() / 4
        moved = Artefacts(np.random.default_rng(0), motion_px=1)
        moved.poses, moved.starts = np.array([[3.0, -2.0, 0.0]]), np.array([0.0])
        found = torch.fft.ifft2(corrupted(images, moved), norm="ortho").real
        assert torch.allclose(found, images.roll((3, -2), (1, 2)), atol=1e-4)

    def test_ghosts_lie_at_a_part_of_the_field_of_view(self) -> None:
        point = torch.zeros(1, 64, 64)
        point[0, 20, 30] = 1
        ghosting = Artefacts(np.random.default_rng(0), ghost=0.5)
        ghosting.period, ghosting.ghost = 4, 0.5
        found = torch.fft.ifft2(corrupted(point, ghosting), norm="ortho").abs()[0, :, 30]
        assert torch.allclose(found[[20, 36, 4]], torch.tensor([1.0, 0.25, 0.25]), atol=1e-4)

    def test_artefacts_change_the_scan(self, labels: Tensor) -> None:
        clean = label_to_image(labels, 2, replace(STILL, artefact_chance=0))[0]
        bad = label_to_image(labels, 2, replace(STILL, artefact_chance=1))[0]
        assert (clean - bad).abs().mean() > 0.01


class TestBadInput:
    @pytest.mark.parametrize(
        "wrong", [{"resolution": (0, 1)}, {"bias_ratio": (0.5, 2)}, {"noise": (0.2, 0.1)}]
    )
    def test_ranges(self, wrong: dict[str, tuple[float, float]]) -> None:
        with pytest.raises(ConfigError, match="CONFIG-05"):
            Physics(**wrong)

    def test_chances(self) -> None:
        with pytest.raises(ConfigError, match="artefact_chance"):
            Physics(artefact_chance=1.5)


def _explained(image: Tensor, labels: Tensor) -> float:
    """Part of the variance that lies between label values."""
    within = sum(
        float((part - part.mean()).square().sum())
        for part in (image[labels == value] for value in labels.unique())
    )
    return 1 - within / float((image - image.mean()).square().sum())


def _unwindowed(labels: Tensor, physics: Physics) -> Tensor:
    """The last step before the window, whose scale depends on the noise."""
    from core_mri.physics import label_to_image as module

    rng = np.random.default_rng(0)
    return module._measured(labels.clamp_max(1).float(), rng, physics)
