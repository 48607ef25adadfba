from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from core_mri.errors import ConfigError, DataError, GeometryError
from core_mri.physics.phantoms import REGIONS, phantom_volume
from core_mri.preprocess import Prepared, Preprocess, percentile_window
from core_mri.volume import SLICE_ORIENTATION, Volume, orientation_of

ORIENTATIONS = ["slices", "RAS", "LPI", "SPL", "PIR"]


def random_volume(seed: int) -> Volume:
    """Any orientation, obliqueness, spacing and shape; every voxel holds its own number."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * rng.choice((-1, 1), 3)
    affine[:3, :3] *= rng.uniform(0.5, 5, 3)
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    shape = tuple(int(n) for n in rng.integers(2, 9, 3))
    return Volume(np.arange(np.prod(shape), dtype=np.int32).reshape(shape), affine)


def world(affine: npt.NDArray[np.float64], index: npt.NDArray[np.int_]) -> npt.NDArray[np.float64]:
    points: npt.NDArray[np.float64] = index @ affine[:3, :3].T + affine[:3, 3]
    return points


def brightest(prepared: Prepared) -> npt.NDArray[np.float64]:
    index = np.array(np.unravel_index(int(np.argmax(prepared.array)), prepared.array.shape))
    return world(prepared.affine, index)


class TestWayBack:
    @pytest.mark.parametrize("orientation", ORIENTATIONS)
    @pytest.mark.parametrize("seed", range(15))
    def test_every_voxel_returns_to_its_place(self, seed: int, orientation: str) -> None:
        volume = random_volume(seed)
        prepared = Preprocess(orientation=orientation, size=(12, 11)).apply(
            volume.with_array(volume.array, kind="label")
        )
        back = prepared.restore(prepared.array)
        np.testing.assert_array_equal(back.array, volume.array)
        np.testing.assert_array_equal(back.affine, volume.affine)
        assert back.kind == "label"

    @pytest.mark.parametrize("orientation", ORIENTATIONS)
    @pytest.mark.parametrize("seed", range(15))
    def test_prepared_voxels_lie_where_the_affine_says(self, seed: int, orientation: str) -> None:
        volume = random_volume(seed)
        labels = volume.with_array(volume.array + 1, kind="label")
        prepared = Preprocess(orientation=orientation, size=(9, 12)).apply(labels)
        for index in np.argwhere(prepared.array > 0)[::7]:
            there = np.array(np.unravel_index(int(prepared.array[tuple(index)]) - 1, volume.shape))
            np.testing.assert_allclose(
                world(prepared.affine, index), world(volume.affine, there), atol=1e-9
            )

    def test_intensities_return_as_they_were_scaled(self) -> None:
        volume, _ = phantom_volume("knee", 0, size=32, num_slices=5)
        prepared = Preprocess(window=(0, 100), size=(40, 40)).apply(volume)
        back = prepared.restore(prepared.array)
        low, high = percentile_window(volume.array, 0, 100)
        np.testing.assert_allclose(
            back.array, (volume.array.astype(float) - low) / (high - low), atol=1e-6
        )
        assert back.kind == "image"
        assert back.facts == volume.facts

    @pytest.mark.parametrize("region", REGIONS)
    def test_resampled_labels_come_back_nearly_whole(self, region: str) -> None:
        _, label = phantom_volume(region, 0, size=64, num_slices=6)
        finer = tuple(0.6 * mm for mm in label.reorient("SPL").spacing_mm)
        prepared = Preprocess(orientation="SPL", spacing_mm=finer).apply(label)
        back = prepared.restore(prepared.array)
        assert back.same_grid(label)
        assert (back.array == label.array).mean() > 0.995

    def test_cropped_voxels_come_back_empty(self) -> None:
        label = Volume(np.ones((2, 6, 6), np.uint8), np.eye(4), kind="label")
        prepared = Preprocess(orientation="RAS", size=(4, 2)).apply(label)
        expected = np.zeros((2, 6, 6), np.uint8)
        expected[:, 1:5, 2:4] = 1
        np.testing.assert_array_equal(prepared.restore(prepared.array).array, expected)

    def test_boolean_masks(self) -> None:
        volume, _ = phantom_volume("brain", 0, size=32, num_slices=4)
        prepared = Preprocess().apply(volume)
        back = prepared.restore(prepared.array > 0.5)
        assert (back.kind, back.array.dtype) == ("label", np.uint8)
        assert back.array.sum() == (prepared.array > 0.5).sum()

    def test_wrong_shape(self) -> None:
        volume, _ = phantom_volume("brain", 0, size=16, num_slices=4)
        with pytest.raises(GeometryError, match="GEOMETRY-03"):
            Preprocess().apply(volume).restore(np.zeros((4, 16, 15), np.uint8))


class TestGrid:
    @pytest.mark.parametrize("region", REGIONS)
    def test_slices_of_the_own_plane_as_displayed(self, region: str) -> None:
        volume, label = phantom_volume(region, 3, size=40, num_slices=7)
        prepared = Preprocess().apply(volume)
        assert prepared.array.shape == (7, 40, 40)
        assert orientation_of(prepared.affine) == SLICE_ORIENTATION[volume.plane]
        assert Preprocess().apply(label).array.shape == prepared.array.shape

    def test_image_and_label_share_the_grid(self) -> None:
        image, label = phantom_volume("abdomen", 1, size=48, num_slices=6)
        steps = Preprocess(spacing_mm=(None, 5.0, 6.0), size=(60, 64))
        a, b = steps.apply(image), steps.apply(label)
        assert a.array.shape == b.array.shape == (6, 60, 64)
        np.testing.assert_array_equal(a.affine, b.affine)
        liver = b.array == 1
        assert liver.sum() > 100

    def test_spacing_is_exact_and_the_center_stays(self) -> None:
        volume, _ = phantom_volume("spine", 1, size=50, num_slices=7)
        prepared = Preprocess(spacing_mm=(2.0, 3.3, None)).apply(volume)
        spacing = np.linalg.norm(prepared.affine[:3, :3], axis=0)
        turned = volume.reorient(SLICE_ORIENTATION["sagittal"])
        np.testing.assert_allclose(spacing, (2.0, 3.3, turned.spacing_mm[2]))
        centers = [
            world(affine, (np.array(shape) - 1) / 2)
            for affine, shape in (
                (volume.affine, volume.shape),
                (prepared.affine, prepared.array.shape),
            )
        ]
        np.testing.assert_allclose(*centers, atol=1e-9)

    @pytest.mark.parametrize("factor", [0.37, 0.5, 1.7, 2.6])
    def test_a_blob_stays_where_it_is(self, factor: float) -> None:
        center, points = np.array([3.0, -4.0, 5.0]), np.indices((24, 24, 24)).reshape(3, -1).T
        affine = np.diag([1.5, 1.5, 1.5, 1.0])
        affine[:3, 3] = -17
        distance = np.linalg.norm(world(affine, points) - center, axis=1)
        blob = np.exp(-((distance / 5) ** 2)).reshape(24, 24, 24).astype(np.float32)
        mm = 1.5 * factor
        prepared = Preprocess(
            orientation="RAS", spacing_mm=(mm, mm, mm), window=(0, 100)
        ).apply(Volume(blob, affine))  # fmt: skip
        assert np.linalg.norm(brightest(prepared) - center) <= max(mm, 1.5) * np.sqrt(3) / 2

    def test_interpolation_is_exact_on_a_ramp(self) -> None:
        # Linear interpolation reproduces a linear function away from the border.
        ramp = np.broadcast_to(np.arange(20, dtype=np.float32), (2, 2, 20))
        volume = Volume(ramp, np.eye(4))
        prepared = Preprocess(
            orientation="RAS", spacing_mm=(None, None, 0.4), window=(0, 100)
        ).apply(volume)
        at = prepared.affine[2, 2] * np.arange(prepared.array.shape[2]) + prepared.affine[2, 3]
        inside = (at >= 0) & (at <= 19)
        np.testing.assert_allclose(prepared.array[0, 0, inside] * 19, at[inside], atol=1e-4)

    def test_coarser_grids_average_instead_of_skipping(self) -> None:
        stripes = np.tile(np.array([0, 1], np.float32), (2, 2, 20))
        prepared = Preprocess(
            orientation="RAS", spacing_mm=(None, None, 4.0), window=(0, 100)
        ).apply(Volume(stripes, np.eye(4)))
        np.testing.assert_allclose(prepared.array[0, 0, 1:-1], 0.5, atol=0.13)

    @pytest.mark.parametrize("seed", range(10))
    def test_no_label_is_invented(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        volume = random_volume(seed)
        values = np.array([0, 3, 7, 200], np.uint8)
        label = volume.with_array(rng.choice(values, volume.shape), kind="label")
        mm = tuple(float(v) for v in rng.uniform(0.3, 6, 3))
        prepared = Preprocess(spacing_mm=mm, size=(15, 14)).apply(label)
        assert prepared.array.dtype == np.uint8
        assert set(np.unique(prepared.array)) <= set(values)
        back = prepared.restore(prepared.array)
        assert back.array.dtype == np.uint8
        assert set(np.unique(back.array)) <= set(values)


class TestWindow:
    def test_percentiles_become_zero_and_one(self) -> None:
        volume, _ = phantom_volume("brain", 0, "T2")
        prepared = Preprocess(window=(5, 95)).apply(volume)
        assert prepared.array.dtype == np.float32
        assert (prepared.array.min(), prepared.array.max()) == (0, 1)
        assert (prepared.array == 0).mean() == pytest.approx(0.05, abs=0.01)
        assert (prepared.array == 1).mean() == pytest.approx(0.05, abs=0.01)

    def test_reference_value(self) -> None:
        # 0..1000: the p-th percentile of equally spaced values is 10 p.
        assert percentile_window(np.arange(1001), 0.5, 99.5) == pytest.approx((5, 995))

    def test_nearly_all_background_takes_the_whole_range(self) -> None:
        array = np.zeros(10_000, np.uint16)
        array[0] = 77
        assert percentile_window(array) == (0, 77)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, value: float) -> None:
        array = np.arange(8.0).reshape(2, 2, 2)
        array[0, 0, 0] = value
        with pytest.raises(DataError, match=r"DATA-04: 1 of 8"):
            Preprocess().apply(Volume(array, np.eye(4)))

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_constant(self, dtype: type) -> None:
        with pytest.raises(DataError, match=r"DATA-05: all 8 voxels have the value 3"):
            percentile_window(np.full((2, 2, 2), 3, dtype))


class TestRefuses:
    @pytest.mark.parametrize(
        "setting",
        [
            {"orientation": "RAX"},
            {"orientation": "RRS"},
            {"spacing_mm": (1.0, 0.0, 1.0)},
            {"window": (99.5, 0.5)},
            {"window": (-1, 99)},
            {"size": (0, 5)},
        ],
    )
    def test_impossible_settings(self, setting: dict[str, object]) -> None:
        with pytest.raises(ConfigError, match="CONFIG-05"):
            Preprocess(**setting)  # type: ignore[arg-type]

    def test_fourth_dimension(self) -> None:
        with pytest.raises(GeometryError, match="GEOMETRY-02"):
            Preprocess().apply(Volume(np.zeros((2, 2, 2, 2)), np.eye(4)))
