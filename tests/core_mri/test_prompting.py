"""Prompts land on the voxels they name, whatever the geometry."""

from __future__ import annotations

from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

from core_mri import Predictor, Volume, create_model, read_volume, save_model, write_volume
from core_mri.__main__ import main
from core_mri.errors import ConfigError, WeightsError
from core_mri.files.dicom_write import write_dicom_series

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
