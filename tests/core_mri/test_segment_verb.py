"""`core-mri segment FOLDER image` with a released segmenter of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from core_mri.__main__ import main
from core_mri.files import read_segmentation, read_volume, write_volume
from core_mri.models.adapters import add_adapters, mri_core_places
from core_mri.models.encoder import Encoder
from core_mri.models.heads import DECODERS
from core_mri.models.registry import EncoderConfig
from core_mri.models.segmenter import Inference, Segmenter
from core_mri.physics.phantoms import phantom_volume
from core_mri.volume import Volume
from core_mri.weights import save_model

NAMES = {1: "liver", 2: "spleen"}


def release(folder: Path, decoder: str, *, sequences: tuple[str, ...] = ("",)) -> Path:
    """A model that marks what is bright (1) and what is not quite (2)."""
    torch.manual_seed(0)
    encoder = Encoder(
        EncoderConfig(embed_dim=32, depth=2, num_heads=2, patch_size=8, image_size=32)
    )
    add_adapters(encoder, mri_core_places(encoder))
    head = DECODERS[decoder](32, 3, 2, patch_size=8, width=8, planes=3 * len(sequences))
    model = Segmenter(
        encoder,
        head,
        depths=(0, 1),
        labels=NAMES,
        image_size=32,
        sequences=sequences,
        neighbours=1,
        inference=Inference(pixel_mm=2.0, smoothing_mm=1.0, smallest_island=0.01),
    )
    head.start_from(torch.tensor([0.34, 0.33, 0.33]))  # so that every class is somewhere
    return save_model(model, folder)


@pytest.fixture
def volume() -> Volume:
    image, _ = phantom_volume("abdomen", 1, size=48, num_slices=4)
    return image.reorient("LPI")


@pytest.mark.parametrize("decoder", DECODERS)
def test_nifti_on_the_grid_of_the_scan_with_names(decoder, volume, tmp_path, capsys):
    weights = release(tmp_path / "weights", decoder)
    scan, out = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    write_volume(volume, scan)
    assert main(["segment", str(weights), str(scan), "--out", str(out), "--device", "cpu"]) == 0
    mask = read_volume(out)
    assert mask.same_grid(read_volume(scan))
    assert set(np.unique(mask.array)) <= {0, 1, 2}
    assert mask.array.any()
    assert (tmp_path / "mask.tsv").read_text() == "index\tname\n1\tliver\n2\tspleen\n"
    printed = capsys.readouterr().out
    for value in np.unique(mask.array[mask.array > 0]):
        assert f"{value} {NAMES[value]}: {(mask.array == value).sum()} voxels" in printed


def test_dicom_segmentation_with_names(volume, tmp_path):
    import highdicom

    weights = release(tmp_path / "weights", "light")
    series, out = tmp_path / "series", tmp_path / "seg.dcm"
    write_volume(volume, series)
    assert main(["segment", str(weights), str(series), "--out", str(out), "--device", "cpu"]) == 0
    mask = read_segmentation(out)
    assert mask.reorient("RAS").same_grid(read_volume(series).reorient("RAS"))
    named = {highdicom.seg.segread(out).get_segment_description(n).segment_label for n in (1,)}
    assert named <= set(NAMES.values())
    assert not list(tmp_path.glob("*.tsv"))


def test_several_sequences_and_one_that_is_missing(volume, tmp_path, capsys):
    weights = release(tmp_path / "weights", "pyramid", sequences=("T1", "T2"))
    scan, out = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    write_volume(volume, scan)
    words = ["segment", str(weights), str(scan), "--out", str(out), "--device", "cpu"]
    assert main(words) == 1
    assert "2 sequences together (T1, T2), got 1" in capsys.readouterr().err
    assert not out.exists()
    assert main([*words, "--sequence", str(scan)]) == 0
    assert read_volume(out).same_grid(read_volume(scan))


def test_seg_of_a_series_without_date_and_names(volume, tmp_path):
    """Type 2 attributes that files lack although they may only be empty."""
    from pydicom import dcmread

    write_volume(volume, tmp_path / "series")
    for path in (tmp_path / "series").iterdir():
        header = dcmread(path)
        for keyword in ("StudyDate", "StudyTime", "PatientName", "AccessionNumber"):
            del header[keyword]
        header.save_as(path)
    scan = read_volume(tmp_path / "series")
    mask = Volume((scan.array > scan.array.mean()).astype(np.uint8), scan.affine, kind="label")
    write_volume(mask, tmp_path / "mask.dcm", like=tmp_path / "series")
    assert read_volume(tmp_path / "mask.dcm").array.sum() == mask.array.sum()
