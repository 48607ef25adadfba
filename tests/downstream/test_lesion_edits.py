"""Promises of edits: exact volume, inside the tissue, a function of the seed, told in full."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from core_mri import read_volume
from core_mri.errors import ConfigError, DataError
from core_mri.volume import Volume
from downstream.synthesis.edits import Edit, Edited, change, check_values, heal, insert
from downstream.synthesis.lesions import Pose, Shape, depth_mm, draw_shape, find_lesions

CSF, GRAY, WHITE, LESION = 1, 2, 3, 4
NAMES = {1: "csf", 2: "gray matter", 3: "white matter", 4: "lesion"}
INSIDE = (GRAY, WHITE)
UNIT = 1.5 * 1.5 * 2 / 1000


def brain() -> Volume:
    """A ball of white in gray matter, a ventricle across its middle; 1.5 x 1.5 x 2 mm."""
    shape = (60, 60, 44)
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    turn = np.deg2rad(12)
    affine[:2, :2] = [[1.5 * np.cos(turn), -1.5 * np.sin(turn)],
                      [1.5 * np.sin(turn), 1.5 * np.cos(turn)]]  # fmt: skip
    middle = (np.array(shape) - 1) / 2
    affine[:3, 3] = -affine[:3, :3] @ middle
    index = np.indices(shape).reshape(3, -1)
    points = (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)
    radius = np.linalg.norm(points, axis=0)
    labels = np.zeros(shape, np.int16)
    labels[radius < 38] = GRAY
    labels[radius < 33] = WHITE
    labels[(np.abs(points[0]) < 3) & (radius < 36)] = CSF
    return Volume(labels, affine, kind="label")


def ball(radius: int = 5) -> Shape:
    grid = np.indices((2 * radius + 3,) * 3) - radius - 1
    mask = np.linalg.norm(grid * np.array([1, 1.4, 1])[:, None, None, None], axis=0) <= radius
    return Shape(mask, np.eye(3), (0.0, 0.0, 0.0), "patient-a")


@pytest.fixture(scope="module")
def anatomy() -> Volume:
    return brain()


def put(anatomy: Volume, edit: Edit) -> Edited:
    return insert(anatomy, ball(), edit, value=LESION, inside=INSIDE)


class TestInsert:
    @pytest.mark.parametrize("volume_ml", [0.2, 1.0, 4.0, 9.0])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_volume_place_and_mask_are_exact(
        self, anatomy: Volume, volume_ml: float, seed: int
    ) -> None:
        edited = put(anatomy, Edit(seed=seed, volume_ml=volume_ml))
        assert abs(edited.lesion.sum() * UNIT - volume_ml) <= 0.02 * volume_ml
        assert np.array_equal(edited.labels.array == LESION, edited.lesion)
        assert set(np.unique(anatomy.array[edited.lesion])) <= set(INSIDE)
        assert ndimage.label(edited.lesion)[1] == 1
        assert np.array_equal(edited.labels.array[~edited.lesion], anatomy.array[~edited.lesion])

    def test_never_on_both_sides_of_the_ventricle(self, anatomy: Volume) -> None:
        edited = put(anatomy, Edit(volume_ml=4, place_mm=(12, 0, 0)))
        index = np.argwhere(edited.lesion)
        x = index @ anatomy.affine[0, :3] + anatomy.affine[0, 3]
        assert (x > 2).all()

    def test_without_a_volume_it_keeps_that_of_the_shape(self, anatomy: Volume) -> None:
        edited = put(anatomy, Edit())
        assert edited.lesion.sum() == round(ball().volume_ml / UNIT)

    def test_goes_where_it_was_asked_to(self, anatomy: Volume) -> None:
        for place in ((18.0, 4.0, 6.0), (-18.0, -6.0, 2.0), (15.0, 12.0, -8.0)):
            edited = put(anatomy, Edit(volume_ml=2, place_mm=place))
            middle = anatomy.affine[:3] @ [*np.argwhere(edited.lesion).mean(0), 1]
            assert np.linalg.norm(middle - place) < 3

    def test_same_seed_same_edit_and_others_differ(self, anatomy: Volume) -> None:
        first, again, other = (put(anatomy, Edit(seed=s, volume_ml=1)) for s in (5, 5, 6))
        assert np.array_equal(first.lesion, again.lesion)
        assert not np.array_equal(first.lesion, other.lesion)

    def test_shape_is_kept_without_bending(self, anatomy: Volume) -> None:
        """A flat ellipsoid stays as flat as it was: 1.4 times as long as high."""
        edit = Edit(volume_ml=3, place_mm=(17, 0, 0), bend=0, turn=False)
        lesion = put(anatomy, edit).lesion
        points = np.argwhere(lesion) @ anatomy.affine[:3, :3].T
        long, flat = points[:, 2].std(), points[:, 1].std()
        assert 1.2 < long / flat < 1.6

    def test_provenance_says_all_and_is_json(self, anatomy: Volume) -> None:
        facts = json.loads(json.dumps(put(anatomy, Edit(seed=3, volume_ml=1)).provenance))
        assert facts["asked"]["seed"] == 3
        assert facts["shape_of"] == "patient-a"
        assert abs(facts["volume_ml"] - 1) < 0.02
        repeated = insert(
            anatomy, ball(), Edit(**facts["asked"]), value=facts["value"], inside=facts["inside"]
        )
        assert repeated.provenance == put(anatomy, Edit(seed=3, volume_ml=1)).provenance


class TestMassEffect:
    def test_tissue_moves_and_the_head_stays(self, anatomy: Volume) -> None:
        still = put(anatomy, Edit(volume_ml=6, place_mm=(16, 0, 0)))
        pushed = put(anatomy, Edit(volume_ml=6, place_mm=(16, 0, 0), mass_effect=1))
        assert np.array_equal(still.lesion, pushed.lesion)
        assert np.array_equal(pushed.labels.array == 0, anatomy.array == 0)
        index = np.argwhere((still.labels.array == CSF) & (pushed.labels.array != CSF))
        assert len(index) > 20  # the ventricle is pressed on the side of the lesion
        assert (index @ anatomy.affine[0, :3] + anatomy.affine[0, 3] > 0).all()

    def test_far_tissue_stays(self, anatomy: Volume) -> None:
        pushed = put(anatomy, Edit(volume_ml=0.5, place_mm=(20, 0, 0), mass_effect=1))
        index = np.indices(anatomy.shape).reshape(3, -1)
        x = (anatomy.affine[0, :3] @ index + anatomy.affine[0, 3]).reshape(anatomy.shape)
        far = x < -15
        assert np.array_equal(pushed.labels.array[far], anatomy.array[far])


@pytest.fixture(scope="module")
def ill(anatomy: Volume) -> Volume:
    return put(anatomy, Edit(volume_ml=2, place_mm=(18, 2, 4))).labels


class TestChange:
    @pytest.mark.parametrize("volume_ml", [0.7, 2.0, 5.0])
    def test_grows_and_shrinks_where_it_is(self, ill: Volume, volume_ml: float) -> None:
        edit = Edit(volume_ml=volume_ml, turn=False, bend=0)
        edited = change(ill, 0, edit, value=LESION, inside=INSIDE)
        count = int((edited.labels.array == LESION).sum())
        assert abs(count * UNIT - volume_ml) <= 0.02 * volume_ml
        before, after = (
            ill.affine[:3] @ [*np.argwhere(volume.array == LESION).mean(0), 1]
            for volume in (ill, edited.labels)
        )
        assert np.linalg.norm(before - after) < 2

    def test_smaller_lies_within_larger(self, ill: Volume) -> None:
        small, large = (
            change(ill, 0, Edit(volume_ml=v, turn=False, bend=0), value=LESION, inside=INSIDE)
            for v in (0.7, 5.0)
        )
        assert (small.lesion & large.lesion).sum() > 0.97 * small.lesion.sum()

    def test_moved_leaves_healthy_tissue(self, ill: Volume) -> None:
        edit = Edit(place_mm=(-18, 0, 0))
        edited = change(ill, 0, edit, value=LESION, inside=INSIDE)
        old = ill.array == LESION
        assert set(np.unique(edited.labels.array[old])) <= set(INSIDE)
        assert (edited.labels.array == LESION).sum() == old.sum()

    def test_healed(self, anatomy: Volume, ill: Volume) -> None:
        (shape,) = find_lesions(ill, [LESION], "p")
        healed = heal(ill, shape, INSIDE)
        assert not (healed.array == LESION).any()
        assert (healed.array != anatomy.array).mean() < 0.001

    def test_mirrored_shape(self) -> None:
        mask = np.zeros((7, 7, 7), bool)
        mask[1:6, 1, 1] = mask[5, 1:5, 1] = mask[5, 4, 1:6] = True
        shape = Shape(mask, np.eye(3), (0, 0, 0), "p")
        points = np.stack(np.meshgrid(*(np.arange(-3.0, 4),) * 3, indexing="ij"))
        own = depth_mm(shape, Pose(), points)
        turned = depth_mm(
            shape, Pose(mirror=True), points * np.array([-1, 1, 1])[:, None, None, None]
        )
        assert np.allclose(own, turned)
        assert not np.allclose(own, depth_mm(shape, Pose(mirror=True), points))


class TestShapes:
    def test_every_part_once_largest_first(self, anatomy: Volume) -> None:
        labels = put(anatomy, Edit(volume_ml=1, place_mm=(18, 0, 0))).labels
        labels = put(labels, Edit(volume_ml=3, place_mm=(-18, 0, 0))).labels
        found = find_lesions(labels, [LESION], "p")
        assert [round(shape.volume_ml) for shape in found] == [3, 1]
        assert found[0].center_mm[0] < 0 < found[1].center_mm[0]

    def test_patients_are_drawn_evenly(self) -> None:
        one, other = ball(), replace(ball(), subject="patient-b")
        rng = np.random.default_rng(0)
        drawn = [draw_shape([one] * 20 + [other], rng).subject for _ in range(200)]
        assert 70 < drawn.count("patient-b") < 130


class TestBadInput:
    def test_larger_than_the_brain(self, anatomy: Volume) -> None:
        with pytest.raises(DataError, match=r"SYNTH-02.*larger than all tissue"):
            put(anatomy, Edit(volume_ml=4000))

    def test_larger_than_the_place(self, anatomy: Volume) -> None:
        with pytest.raises(DataError, match="SYNTH-03"):
            put(anatomy, Edit(volume_ml=140, place_mm=(18, 0, 0)))

    @pytest.mark.parametrize("place", [(0, 0, 0), (0, 60, 0), (900, 0, 0)])
    def test_no_healthy_tissue_there(self, anatomy: Volume, place: tuple[float, ...]) -> None:
        with pytest.raises(DataError, match=r"SYNTH-03.*no healthy tissue"):
            put(anatomy, Edit(volume_ml=1, place_mm=place))  # type: ignore[arg-type]

    def test_unknown_values(self, anatomy: Volume) -> None:
        with pytest.raises(DataError, match=r"SYNTH-01.*\[3\]"):
            check_values(anatomy, {1: "csf", 2: "gray matter"})
        check_values(anatomy, NAMES)

    def test_voxels_too_coarse(self, anatomy: Volume) -> None:
        with pytest.raises(DataError, match="SYNTH-04"):
            put(anatomy, Edit(volume_ml=0.01))

    def test_no_such_lesion(self, anatomy: Volume) -> None:
        with pytest.raises(DataError, match="SYNTH-05"):
            change(anatomy, 0, Edit(), value=LESION, inside=INSIDE)
        with pytest.raises(DataError, match="SYNTH-05"):
            draw_shape([], np.random.default_rng(0))

    def test_impossible_numbers(self) -> None:
        with pytest.raises(ConfigError, match="CONFIG-05"):
            Edit(mass_effect=2)


@pytest.mark.data
class TestRealScans:
    def test_lesion_of_a_patient_in_a_healthy_brain(self, shared_data: Path) -> None:
        mask = read_volume(shared_data / "brain_ms_lesion/patient19/lesion_mask.nii.gz")
        shapes = find_lesions(replace(mask, kind="label"), [1], "patient19")
        tissue = read_volume(shared_data / "brain_icbm152/tissue_labels_derived.nii.gz")
        edited = insert(tissue, shapes[0], Edit(volume_ml=5), value=4, inside=(3,))
        assert edited.lesion.sum() == 5000
        assert set(np.unique(tissue.array[edited.lesion])) == {3}
