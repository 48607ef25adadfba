from __future__ import annotations

import itertools
import pickle

import numpy as np
import numpy.typing as npt
import pytest

from core_mri.errors import GeometryError
from core_mri.volume import SLICE_ORIENTATION, Volume, orientation_of

ALL_CODES = [
    "".join(signs[axis] for axis, signs in zip(order, choice, strict=True))
    for order in itertools.permutations(range(3))
    for choice in itertools.product(("RAS", "LPI"), repeat=3)
]


def random_affine(seed: int, max_degrees: float = 40) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    angle = np.deg2rad(rng.uniform(0, max_degrees))
    cross = np.cross(np.eye(3), axis)
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.eye(3)[:, rng.permutation(3)] * rng.choice((-1, 1), 3)
    affine[:3, :3] *= rng.uniform(0.4, 7, 3)
    affine[:3, 3] = rng.uniform(-150, 150, 3)
    return affine


def coded_volume(seed: int, **options: float) -> Volume:
    """Every voxel holds its own number, so that moved voxels show."""
    shape = tuple(np.random.default_rng(seed).integers(2, 6, 3))
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    return Volume(array, random_affine(seed, **options))


def world_points(volume: Volume) -> npt.NDArray[np.float64]:
    """RAS+ mm of every voxel, in the order of the values that the voxels hold."""
    index = np.argwhere(np.ones(volume.array.shape[:3], dtype=bool))
    points = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return points[np.argsort(volume.array.ravel())]


class TestReorient:
    @pytest.mark.parametrize("codes", ALL_CODES)
    def test_gives_what_was_asked_and_moves_no_voxel(self, codes: str) -> None:
        for seed in range(6):
            volume = coded_volume(seed)
            turned = volume.reorient(codes)
            assert turned.orientation == codes
            np.testing.assert_allclose(world_points(turned), world_points(volume), atol=1e-9)
            back = turned.reorient(volume.orientation)
            np.testing.assert_array_equal(back.array, volume.array)
            np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9)

    @pytest.mark.parametrize("codes", ["SPL", "AIL", "LIP", "RAS"])
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_exactly_45_degrees_has_a_way_back(self, axis: int, codes: str) -> None:
        a, b = [i for i in range(3) if i != axis]
        affine = np.eye(4)
        affine[[a, a, b, b], [a, b, a, b]] = np.sqrt(0.5) * np.array([1, -1, 1, 1])
        volume = Volume(np.arange(24).reshape(2, 3, 4), affine)
        turned = volume.reorient(codes)
        assert turned.orientation == codes
        np.testing.assert_array_equal(turned.reorient(volume.orientation).array, volume.array)

    def test_strong_obliquity_uses_each_patient_axis_once(self) -> None:
        for seed in range(50):
            codes = orientation_of(random_affine(seed, max_degrees=180))
            assert sorted("RLAPSI".index(code) // 2 for code in codes) == [0, 1, 2]

    def test_fourth_dimension_stays_last(self) -> None:
        array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
        turned = Volume(array, np.eye(4)).reorient("SPL")
        assert turned.shape == (4, 3, 2, 5)
        np.testing.assert_array_equal(turned.array[0, 2, 1], array[0, 0, 0])

    @pytest.mark.parametrize("codes", ["RAX", "RLS", "RA", "RASR", "ras"])
    def test_refuses_other_codes(self, codes: str) -> None:
        with pytest.raises(GeometryError, match="GEOMETRY-03"):
            coded_volume(0).reorient(codes)


class TestPlane:
    @pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
    @pytest.mark.parametrize("seed", range(5))
    def test_follows_the_thick_axis(self, plane: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        spacing = np.ones(3)
        spacing[{"sagittal": 0, "coronal": 1, "axial": 2}[plane]] = 4
        affine = np.diag([*spacing, 1.0])
        order = [*rng.permutation(3), 3]
        assert Volume(np.zeros((4, 4, 4)), affine[:, order]).plane == plane

    def test_a_single_slice_is_its_own_plane(self) -> None:
        thin = np.diag([1.0, 1.0, 0.5, 1.0])
        assert Volume(np.zeros((8, 8, 1)), thin).plane == "axial"
        assert Volume(np.zeros((1, 8, 8)), thin).plane == "sagittal"

    def test_isotropic_is_axial(self) -> None:
        assert Volume(np.zeros((4, 4, 4)), np.diag([1.1, 1, 1, 1])).plane == "axial"

    def test_slices_are_displayed_in_radiological_convention(self) -> None:
        assert SLICE_ORIENTATION == {"axial": "SPL", "coronal": "AIL", "sagittal": "LIP"}


class TestGeometry:
    def test_lps_differs_by_the_sign_of_x_and_y(self) -> None:
        volume = coded_volume(3)
        np.testing.assert_array_equal(
            volume.affine_lps, np.array([[-1], [-1], [1], [1]]) * volume.affine
        )

    def test_same_grid_looks_at_all_corners(self) -> None:
        volume = coded_volume(1)
        moved = volume.affine.copy()
        moved[0, 2] += 0.1
        assert volume.same_grid(volume.with_array(volume.array + 1))
        assert not volume.same_grid(Volume(volume.array, moved))
        assert not volume.same_grid(Volume(volume.array[:-1], volume.affine))

    def test_affine_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="read-only"):
            coded_volume(0).affine[0, 0] = 2

    @pytest.mark.parametrize("entry", [0.0, np.nan, np.inf])
    def test_impossible_spacing(self, entry: float) -> None:
        with pytest.raises(GeometryError, match="GEOMETRY-01"):
            Volume(np.zeros((2, 2, 2)), np.diag([1, entry, 1, 1]))

    def test_dependent_axes(self) -> None:
        affine = np.eye(4)
        affine[:3, 1] = affine[:3, 0]
        with pytest.raises(GeometryError, match="GEOMETRY-01"):
            Volume(np.zeros((2, 2, 2)), affine)

    @pytest.mark.parametrize("shape", [(2, 2), (2, 0, 2), (1, 1, 1, 1, 1)])
    def test_impossible_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(GeometryError, match="GEOMETRY-02"):
            Volume(np.zeros(shape), np.eye(4))

    def test_other_shape_is_another_grid(self) -> None:
        with pytest.raises(GeometryError, match="GEOMETRY-03"):
            coded_volume(0).with_array(np.zeros((9, 9, 9)))


class TestPickle:
    def test_survives(self) -> None:
        volume = Volume(np.arange(8).reshape(2, 2, 2), np.eye(4), "label", {"EchoTime": 2.5})
        again = pickle.loads(pickle.dumps(volume))
        np.testing.assert_array_equal(again.array, volume.array)
        assert (again.kind, dict(again.facts)) == ("label", {"EchoTime": 2.5})
