"""Prompts land on the voxels they name, whatever the geometry."""

from __future__ import annotations

from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

from core_mri import Predictor, Volume, create_model, read_volume, save_model, write_volume
from core_mri.__main__ import main
from core_mri.errors import ConfigError, GeometryError, WeightsError
from core_mri.files.dicom_write import write_dicom_series
from core_mri.prompting import PromptedVolume

BOX = (3, 4, 2, 9, 8, 5)
OBLIQUE = np.array([[0.9, 0.3, 0.2], [-0.3, 0.9, 0.1], [-0.15, -0.15, 0.95]])
OBLIQUE, _ = np.linalg.qr(OBLIQUE)


def make_volume(flips=(1, 1, 1), order=(0, 1, 2), shape=(14, 11, 7)) -> Volume:
    axes = (OBLIQUE * [*flips] * [1.0, 1.3, 4.0])[:, list(order)]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, (-20, 7, 31)
    array = np.random.default_rng(0).integers(0, 300, [shape[n] for n in order])
    return Volume(array.astype(np.int16), affine)


@pytest.fixture
def predictor(monkeypatch) -> Predictor:
    """A decoder that answers the box, or 3 x 3 pixels about the first point, exactly."""
    model = create_model("sam_vit_micro")
    size = 56  # four times 14: a pixel is four by four of the model's

    def decode(embedding, points=None, boxes=None, mask=None, *, multimask=False):
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        if boxes is None:
            px, py = points[0][0, 0]
            inside = ((x - px).abs() < 6) & ((y - py).abs() < 6)
        else:
            x0, y0, x1, y1 = boxes[0]
            inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
        return SimpleNamespace(logits=torch.where(inside, 1.0, -1.0)[None, None])

    monkeypatch.setattr(model, "decode", decode)
    monkeypatch.setattr(model, "embed_image", lambda images: images)
    predictor = Predictor(model)
    predictor.image_size = size
    return predictor


def expected(volume: Volume, box=BOX) -> np.ndarray:
    mask = np.zeros(volume.shape, np.uint8)
    mask[box[0] : box[3], box[1] : box[4], box[2] : box[5]] = 1
    return mask


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (1, 0, 2)])
def test_box_lands_on_its_voxels_and_nibabel_reads_it_there(predictor, tmp_path, flips, order):
    volume = make_volume(flips, order)
    bounds = [(BOX[n], BOX[n + 3]) for n in order]
    box = (*(b[0] for b in bounds), *(b[1] for b in bounds))
    mask = predictor.segment(volume, boxes=[box])
    write_volume(mask, tmp_path / "mask.nii.gz", like=volume)
    stored = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(stored.dataobj), expected(volume, box))
    np.testing.assert_allclose(stored.affine, volume.affine, atol=1e-5)


@pytest.mark.parametrize("flips", [(1, 1, 1), (1, 1, -1), (-1, 1, -1)])
def test_segmentation_of_a_dicom_series_is_read_there_by_highdicom(predictor, tmp_path, flips):
    import highdicom

    write_dicom_series(make_volume(flips), tmp_path / "series")
    volume = read_volume(tmp_path / "series")
    mask = predictor.segment(volume, boxes=[BOX])
    write_volume(mask, tmp_path / "mask.dcm", like=tmp_path / "series")
    seg = highdicom.seg.segread(tmp_path / "mask.dcm")
    stored = seg.get_volume(combine_segments=True)
    # Points in LPS mm of both sides, to compare without any convention of ours.
    got = np.argwhere(stored.array > 0) @ stored.affine[:3, :3].T + stored.affine[:3, 3]
    wanted = np.argwhere(expected(volume)) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    wanted *= [-1, -1, 1]
    assert len(got) == len(wanted) > 0
    distance = np.linalg.norm(got[:, None] - wanted[None], axis=-1)
    assert distance.min(1).max() < 1e-2
    assert distance.min(0).max() < 1e-2


def test_a_point_is_followed_through_the_slices(predictor):
    volume = make_volume()
    mask = predictor.segment(volume, points=[(6, 5, 3, 1)])
    np.testing.assert_array_equal(mask.array, expected(volume, (5, 4, 0, 8, 7, 7)))


def test_each_box_is_an_object_and_prompts_outside_are_named(predictor):
    volume = make_volume()
    mask = predictor.segment(volume, boxes=[(0, 0, 0, 3, 3, 2), BOX])
    np.testing.assert_array_equal(
        mask.array, 2 * expected(volume) + expected(volume, (0, 0, 0, 3, 3, 2))
    )
    with pytest.raises(ConfigError, match="j is 11, allowed is 0 to 10"):
        predictor.segment(volume, points=[(1, 11, 2, 1)])
    with pytest.raises(ConfigError, match="k is 8, allowed is 3 to 7"):
        predictor.segment(volume, boxes=[(3, 4, 2, 9, 8, 8)])
    with pytest.raises(WeightsError, match=r"WEIGHTS-08.*core-mri finetune prompting"):
        Predictor(create_model("vit_micro_patch8")).segment(volume, boxes=[BOX])


def test_points_by_object_and_a_box_refined_by_its_points(predictor):
    volume = make_volume()
    mask = predictor.segment(volume, points={2: [(6, 5, 3, 1)], 7: [(2, 9, 3, 1)]})
    wanted = 2 * expected(volume, (5, 4, 0, 8, 7, 7)) + 7 * expected(volume, (1, 8, 0, 4, 11, 7))
    np.testing.assert_array_equal(mask.array, wanted)
    one = predictor.segment(volume, boxes=[BOX], points={1: [(4, 5, 3, 0)]})
    np.testing.assert_array_equal(one.array, expected(volume))


def test_an_object_is_followed_between_its_boxes_and_ends_with_a_box_of_several_slices(predictor):
    volume = make_volume()
    first, last = (3, 4, 1, 9, 8, 2), (2, 4, 5, 9, 8, 6)
    mask = predictor.segment(volume, boxes={1: [last, first]})
    wanted = expected(volume, (3, 4, 0, 9, 8, 3)) | expected(volume, (2, 4, 3, 9, 8, 7))
    np.testing.assert_array_equal(mask.array, wanted)
    mask = predictor.segment(volume, boxes={1: [(3, 4, 1, 9, 8, 3), last]})
    wanted = expected(volume, (3, 4, 1, 9, 8, 3)) | expected(volume, last)
    np.testing.assert_array_equal(mask.array, wanted)


@pytest.mark.parametrize("flips", [(1, 1, 1), (1, 1, -1)])
def test_following_stops_at_an_empty_answer_and_at_growth(predictor, monkeypatch, flips):
    volume = make_volume(flips, shape=(14, 11, 9))
    widths = [4, 0, 4, 4, 4, 4, 9, 4, 4]  # by k: nothing at 1, more than twice the area at 6

    def answer(self, index, prompt):
        k = np.linalg.inv(volume.affine) @ self.prepared.affine @ [index, 0, 0, 1]
        mask = np.zeros(self.prepared.array.shape[1:], bool)
        mask[2:6, 1 : 1 + widths[round(k[2])]] = True
        return mask

    monkeypatch.setattr(PromptedVolume, "_slice", answer)
    mask = predictor.segment(volume, points=[(1, 3, 3, 1)])
    assert np.flatnonzero(mask.array.any((0, 1))).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(
    "prompts",
    [
        {"points": [(6, 5, 1, 1), (7, 5, 4, 1)]},
        {"points": [(6, 5, 2, 1), (2, 3, 4, 0)]},
        {"boxes": {1: [(3, 4, 0, 9, 8, 1), (4, 4, 5, 9, 9, 6)]}},
        {"boxes": [BOX], "points": {2: [(6, 5, 3, 1)]}},
    ],
)
def test_flipped_slices_and_reordered_prompts_give_the_same_answer(prompts):
    torch.manual_seed(0)
    predictor = Predictor(create_model("sam_vit_micro"))
    volume = make_volume()
    last = volume.shape[2] - 1
    flip = np.diag([1.0, 1, -1, 1])
    flip[2, 3] = last
    turned = Volume(np.ascontiguousarray(volume.array[..., ::-1]), volume.affine @ flip)

    def turn_point(p):
        return (p[0], p[1], last - p[2], p[3])

    def turn_box(b):
        return (b[0], b[1], last + 1 - b[5], b[3], b[4], last + 1 - b[2])

    def turn(given, one):
        if isinstance(given, dict):
            return {number: [one(p) for p in reversed(group)] for number, group in given.items()}
        return [one(p) for p in given]

    found = predictor.segment(volume, **prompts)
    back = predictor.segment(
        turned,
        boxes=turn(prompts.get("boxes", []), turn_box),
        points=turn(prompts.get("points", []), turn_point),
    )
    np.testing.assert_array_equal(back.array[..., ::-1], found.array)
    assert found.array.any()


class TestMask:
    def test_slices_without_a_click_keep_it(self, predictor):
        volume = make_volume()
        earlier = predictor.segment(volume, boxes=[BOX])
        refined = predictor.segment(volume, mask=earlier, points=[(6, 5, 3, 1)])
        wanted = expected(volume)
        wanted[..., 3] = expected(volume, (5, 4, 3, 8, 7, 4))[..., 3]
        np.testing.assert_array_equal(refined.array, wanted)

    def test_of_one_slice_is_followed_after_the_click(self, predictor):
        volume = make_volume()
        earlier = volume.with_array(expected(volume, (3, 4, 3, 9, 8, 4)), kind="label")
        refined = predictor.segment(volume, mask=earlier, points=[(6, 5, 3, 1)])
        np.testing.assert_array_equal(refined.array, expected(volume, (5, 4, 0, 8, 7, 7)))

    @pytest.mark.parametrize("shape", [(14, 11, 7), (11, 14, 7)])
    def test_reaches_the_decoder_at_its_place(self, predictor, monkeypatch, shape):
        """An embedding of 14 x 14: 56 logits a side, four by four a pixel."""
        volume = make_volume(shape=shape)
        seen = {}

        def decode(embedding, points=None, boxes=None, mask=None, *, multimask=False):
            seen["mask"] = mask
            return SimpleNamespace(logits=mask)

        monkeypatch.setattr(predictor.model, "decode", decode)
        monkeypatch.setattr(predictor.model, "embed_image", lambda _: torch.zeros(1, 1, 14, 14))
        earlier = expected(volume, (3, 4, 2, 9, 8, 4)) * 3
        again = predictor.segment(volume, mask=volume.with_array(earlier, kind="label"))
        np.testing.assert_array_equal(again.array, earlier)
        assert seen["mask"].shape == (1, 1, 56, 56)
        assert seen["mask"].max() == 10
        assert seen["mask"].min() == -10

    def test_changes_what_the_real_decoder_answers(self):
        torch.manual_seed(0)
        predictor, volume = Predictor(create_model("sam_vit_micro")), make_volume()
        box = [(3, 4, 2, 9, 8, 3)]
        earlier = volume.with_array(expected(volume, (3, 4, 2, 9, 8, 4)), kind="label")
        plain = predictor.segment(volume, boxes=box).array[..., 2]
        with_mask = predictor.segment(volume, boxes=box, mask=earlier).array[..., 2]
        assert (plain != with_mask).any()

    def test_of_another_grid_or_of_more_than_numbers(self, predictor):
        volume = make_volume()
        other = make_volume((1, 1, -1)).with_array(expected(volume), kind="label")
        with pytest.raises(GeometryError, match=r"\(14, 11, 7\)"):
            predictor.segment(volume, mask=other)
        for wrong in (0.5, np.nan, 256, -1):
            array = expected(volume).astype(np.float32) * wrong
            with pytest.raises(ConfigError, match="0 to 255, got"):
                predictor.segment(volume, mask=volume.with_array(array))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"boxes": [(3, 4, 2, 3, 8, 5)]}, r"box \(3, 4, 2, 3, 8, 5\): i is 3, allowed is 4 to 14"),
        ({"boxes": [(3, 4, 5, 9, 8, 2)]}, "k is 2, allowed is 6 to 7"),
        ({"boxes": [(-1, 4, 2, 9, 8, 5)]}, "i is -1, allowed is 0 to 13"),
        ({"boxes": [(3, 4.5, 2, 9, 8, 5)]}, "j is 4.5; voxel indices are whole numbers"),
        ({"boxes": [(3, 4, 2, 9, 8)]}, "a box is i0,j0,k0,i1,j1,k1"),
        ({"boxes": [BOX] * 256}, "object 256: allowed is 1 to 255, at most 255 objects"),
        ({"boxes": {1: [BOX, BOX]}}, "another box of its object"),
        ({"points": [(1, 2, 3, 2)]}, "a point is i,j,k,1 or i,j,k,0"),
        ({"points": [(1, 2, 3.5, 1)]}, "k is 3.5; voxel indices"),
        ({"points": [(1, 2, 3, 0)]}, "object 1 has no point inside"),
        ({"points": {0: [(1, 2, 3, 1)]}}, "object 0: allowed is 1 to 255"),
        ({"points": [(1, 2, 3, 1)], "boxes": [BOX, BOX]}, "which object they mean"),
        ({}, "no prompt"),
        ({"points": [(1, 2, 3, 1)], "automatic": True}, "automatic takes no"),
    ],
)
def test_wrong_prompts_are_named(predictor, prompts, message):
    with pytest.raises(ConfigError, match=message):
        predictor.segment(make_volume(), **prompts)


def test_real_decoder_answers_and_slices_are_embedded_once(monkeypatch):
    torch.manual_seed(0)
    model = create_model("sam_vit_micro")
    calls = []
    embed = model.embed_image
    monkeypatch.setattr(model, "embed_image", lambda images: calls.append(1) or embed(images))
    predictor, volume = Predictor(model), make_volume()
    first = predictor.segment(volume, boxes=[BOX])
    again = predictor.segment(volume, boxes=[BOX])
    assert len(calls) == BOX[5] - BOX[2]
    np.testing.assert_array_equal(first.array, again.array)


def test_verb_answers_voxels_and_millimetres_alike(tmp_path, capsys):
    torch.manual_seed(0)
    model = create_model("sam_vit_micro")
    save_model(model, tmp_path / "weights")
    volume = make_volume((1, -1, -1))
    write_volume(volume, tmp_path / "scan.nii.gz")
    words = ["segment", str(tmp_path / "weights"), str(tmp_path / "scan.nii.gz"), "--device", "cpu"]
    last = [BOX[3] - 1, BOX[4] - 1, BOX[5] - 1]
    mm = np.array([BOX[:3], last]) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    box = ",".join(f"{value:.3f}" for value in mm.ravel())
    out = tmp_path / "voxels.nii.gz", tmp_path / "mm.nii.gz"
    assert main([*words, f"--box={','.join(map(str, BOX))}", "--out", str(out[0])]) == 0
    assert main([*words, f"--box={box}", "--world", "--out", str(out[1])]) == 0
    first, second = (np.asarray(nibabel.load(path).dataobj) for path in out)
    wanted = Predictor(model).segment(read_volume(tmp_path / "scan.nii.gz"), boxes=[BOX])
    np.testing.assert_array_equal(first, wanted.array)
    np.testing.assert_array_equal(second, first)
    assert main([*words, "--point=1,2,99,1", "--out", str(tmp_path / "none.nii")]) == 2
    assert "k is 99, allowed is 0 to 6" in capsys.readouterr().err
    assert not (tmp_path / "none.nii").exists()


class TestBadInputOfTheVerb:
    """What a user gets: the cause in one line, exit code 1 or 2, and no file."""

    @pytest.fixture
    def run(self, tmp_path, capsys):
        torch.manual_seed(0)
        save_model(create_model("sam_vit_micro"), tmp_path / "weights")

        def run(array=None, words=("--point=1,2,3,1",), out="mask.nii.gz", weights="weights"):
            volume = make_volume()
            if array is not None:
                volume = Volume(array, volume.affine)
            if not (tmp_path / "scan.nii").exists():
                write_volume(volume, tmp_path / "scan.nii")
            before = sorted(tmp_path.rglob("*"))
            scan = str(tmp_path / "scan.nii")
            paths = [str(tmp_path / weights), scan, "--out", str(tmp_path / out)]
            code = main(["segment", *paths, "--device", "cpu", *words])
            assert sorted(tmp_path.rglob("*")) == before
            return code, capsys.readouterr().err

        return run

    @pytest.mark.parametrize(
        ("value", "code"),
        [(np.nan, "scan.nii: 1 of 1078 voxels"), (7, "scan.nii: all 1078 voxels")],
    )
    def test_voxels(self, run, value, code):
        array = make_volume().array.astype(np.float32)
        array[(3, 4, 2) if np.isnan(value) else ...] = value
        status, message = run(array)
        assert status == 1
        assert code in message

    def test_no_slices(self, run, tmp_path):
        empty = np.zeros((14, 11, 0), np.float32)
        nibabel.save(nibabel.Nifti1Image(empty, np.eye(4)), tmp_path / "scan.nii")
        status, message = run()
        assert status == 1
        assert "scan.nii" in message
        assert "(14, 11, 0)" in message

    def test_four_channels(self, run, tmp_path):
        array = np.zeros((14, 11, 7, 4), np.float32)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "scan.nii")
        status, message = run()
        assert status == 1
        assert "scan.nii: expected three dimensions, got shape (14, 11, 7, 4)" in message

    @pytest.mark.parametrize("out", ["mask.jpg", "mask", "mask.nii.bz2"])
    def test_unknown_ending(self, run, out):
        status, message = run(out=out)
        assert status == 2
        assert f"{out}: the ending must be" in message

    def test_a_dicom_segmentation_of_a_nifti_file(self, run):
        status, message = run(out="mask.dcm")
        assert status == 1
        assert "scan.nii: not a DICOM file" in message
        assert "write .nii.gz" in message

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--point=1,2"], "--point takes 4 numbers with commas"),
            (["--point=1,2,x,1"], "got '1,2,x,1'"),
            (["--point=1,2,nan,1"], "got '1,2,nan,1'"),
            (["--point=1,2,3.5,1"], "voxel indices are whole numbers"),
            (["--point=1,2,3,1,1", "--point=1,2,3,1"], "some --point name their object"),
            (["--box=3,4,5,9,8,5"], "k is 5, allowed is 6 to 7"),
            ([f"--box={','.join(map(str, BOX))}"] * 256, "at most 255 objects"),
            ([], "no prompt"),
        ],
    )
    def test_prompts(self, run, words, message):
        status, told = run(words=words)
        assert status == 2
        assert message in told

    def test_weights_without_a_decoder(self, run, tmp_path):
        save_model(create_model("vit_micro_patch8"), tmp_path / "encoder")
        status, message = run(weights="encoder")
        assert status in (1, 2)
        assert "decoder" in message

    def test_damaged_weights(self, run, tmp_path):
        path = tmp_path / "weights" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        status, message = run()
        assert status == 1
        assert "model.safetensors" in message


def test_points_by_object_through_the_verb(tmp_path, capsys):
    torch.manual_seed(0)
    model = create_model("sam_vit_micro")
    save_model(model, tmp_path / "weights")
    volume = make_volume()
    write_volume(volume, tmp_path / "scan.nii")
    words = ["segment", str(tmp_path / "weights"), str(tmp_path / "scan.nii"), "--device", "cpu"]
    clicks = ["--point=6,5,3,1,2", "--point=2,9,3,1,5", "--point=6,6,3,0,2"]
    assert main([*words, *clicks, "--out", str(tmp_path / "a.nii")]) == 0
    wanted = Predictor(model).segment(
        read_volume(tmp_path / "scan.nii"),
        points={2: [(6, 5, 3, 1), (6, 6, 3, 0)], 5: [(2, 9, 3, 1)]},
    )
    first = read_volume(tmp_path / "a.nii").array
    np.testing.assert_array_equal(first, wanted.array)
    assert {2, 5} & set(np.unique(first).tolist())
    again = ["--mask", str(tmp_path / "a.nii"), "--point=6,5,3,1,2"]
    assert main([*words, *again, "--out", str(tmp_path / "b.nii")]) == 0
    capsys.readouterr()
