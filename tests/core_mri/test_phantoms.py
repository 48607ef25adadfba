from __future__ import annotations

import time

import numpy as np
import pytest

from core_mri.errors import DataError
from core_mri.physics.phantoms import LABELS, REGIONS, SEQUENCES, phantom_volume

PLANES = {"knee": "sagittal", "spine": "sagittal", "shoulder": "coronal"}


@pytest.mark.parametrize("region", REGIONS)
class TestEveryRegion:
    def test_same_arguments_same_bytes(self, region: str) -> None:
        first, second = (phantom_volume(region, 3, "T2", size=48, num_slices=6) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            assert a.array.tobytes() == b.array.tobytes()
            assert a.affine.tobytes() == b.affine.tobytes()

    def test_sequences_share_anatomy_and_grid_but_not_contrast(self, region: str) -> None:
        scans = [phantom_volume(region, 2, name, size=64, num_slices=6) for name in SEQUENCES]
        reference_image, reference = scans[0]
        for image, label in scans[1:]:
            assert label.same_grid(reference, tolerance_mm=0)
            np.testing.assert_array_equal(label.array, reference.array)
            correlation = np.corrcoef(image.array.ravel(), reference_image.array.ravel())[0, 1]
            assert correlation < 0.99

    def test_subjects_and_seeds_differ(self, region: str) -> None:
        labels = [
            phantom_volume(region, subject, size=48, num_slices=6, seed=seed)[1].array
            for subject, seed in ((0, 0), (1, 0), (0, 1))
        ]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert (labels[a] != labels[b]).mean() > 0.005

    def test_types_shape_plane_and_labels(self, region: str) -> None:
        found: set[int] = set()
        for subject in range(8):
            image, label = phantom_volume(region, subject)
            assert image.array.shape == label.array.shape == (96, 96, 12)
            assert (image.array.dtype, label.array.dtype) == (np.uint16, np.uint8)
            assert label.kind == "label"
            assert image.plane == PLANES.get(region, "axial")
            assert image.spacing_mm[2] >= 1.2 * image.spacing_mm[0]
            found |= set(np.unique(label.array).tolist())
        assert found == {0, *LABELS[region]}

    @pytest.mark.parametrize("size", [16, 40])
    def test_small_ones_keep_their_plane(self, region: str, size: int) -> None:
        image, _ = phantom_volume(region, 0, size=size, num_slices=3)
        assert image.plane == PLANES.get(region, "axial")

    def test_structures_are_seen_in_the_image(self, region: str) -> None:
        """A label must differ in brightness from its surroundings in at least one sequence."""
        _, label = phantom_volume(region, 1)
        for value in set(np.unique(label.array).tolist()) - {0}:
            inside = label.array == value
            near = np.zeros_like(inside)
            for axis in (0, 1):
                for shift in (-2, 2):
                    near |= np.roll(inside, shift, axis)
            near &= ~inside
            contrasts = []
            for name in SEQUENCES:
                voxels = phantom_volume(region, 1, name)[0].array.astype(float)
                spread = voxels[inside].std() + voxels[near].std() + 1
                contrasts.append(abs(voxels[inside].mean() - voxels[near].mean()) / spread)
            assert max(contrasts) > 0.3


class TestImage:
    def test_background_noise_is_rayleigh(self) -> None:
        # Mean over standard deviation of Rayleigh noise is sqrt(pi / (4 - pi)) = 1.913.
        image, _ = phantom_volume("brain", 0, "PD")
        corner = image.array[:10, :10].astype(float)
        assert corner.mean() / corner.std() == pytest.approx(1.913, rel=0.1)

    def test_fluid_follows_the_sequence(self) -> None:
        def ratio(name: str) -> float:
            image, label = phantom_volume("brain", 5, name)
            middle = (slice(None), slice(None), slice(4, 8))
            voxels, classes = image.array[middle], label.array[middle]
            return float(np.median(voxels[classes == 1]) / np.median(voxels[classes == 3]))

        assert ratio("T2") > 1.15
        assert ratio("T1") < 0.85
        assert ratio("FLAIR") < 0.9

    def test_slightly_oblique(self) -> None:
        affine = phantom_volume("brain", 0)[0].affine
        off_axis = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).min(axis=0)
        assert 0 < off_axis.max() < 0.3

    def test_facts_name_it_synthetic(self) -> None:
        facts = phantom_volume("heart", 4, "CINE", seed=2)[0].facts
        assert facts["Modality"] == "MR"
        assert facts["PatientID"] == "synthetic-heart-2-4"
        assert "synthetic" in str(facts["SeriesDescription"])
        assert all(type(value) in (str, float) for value in facts.values())

    def test_is_cheap(self) -> None:
        phantom_volume("abdomen", 0)
        start = time.process_time()
        for subject in range(5):
            phantom_volume("abdomen", subject)
        assert (time.process_time() - start) / 5 < 0.15


class TestRefuses:
    def test_unknown_region(self) -> None:
        with pytest.raises(DataError, match=r"DATA-03.*'elbow'.*brain"):
            phantom_volume("elbow", 0)

    def test_unknown_sequence(self) -> None:
        with pytest.raises(DataError, match=r"DATA-03.*'T3'.*FLAIR"):
            phantom_volume("brain", 0, "T3")
