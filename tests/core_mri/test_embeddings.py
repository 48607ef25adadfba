"""Features at any size and precision, where patches lie, and tables of vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch import Tensor, nn

import core_mri
from core_mri import embeddings
from core_mri.embeddings import TableParts, rows_of, save_npz
from core_mri.errors import ConfigError, DataError, GeometryError
from core_mri.files.search import find_volumes
from core_mri.models.encoder import Encoder, Features
from core_mri.physics.phantoms import phantom_volume
from core_mri.pictures import patch_colors
from core_mri.predictor import Embedding, Predictor
from core_mri.preprocess import Preprocess


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return core_mri.create_model("vit_micro_patch8").eval()


class MeanOfPatches(nn.Module):
    """An encoder whose answer is known: the mean intensity of each patch."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_size = 8
        self.config = core_mri.create_model("vit_micro_patch8").config
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Features:
        patches = nn.functional.avg_pool2d(images, 8).permute(0, 2, 3, 1)
        return Features(patches.mean((1, 2)), patches)


def blob(codes: str = "RAS") -> core_mri.Volume:
    """One smooth spot in an oblique anisotropic volume, off its center."""
    grid = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in (64, 44, 6)), indexing="ij")
    distance = ((grid[0] - 40) / 8) ** 2 + ((grid[1] - 16) / 6) ** 2 + ((grid[2] - 2) / 1.2) ** 2
    affine = np.array([[1, 0.1, 0, 3], [-0.1, 1, 0.3, 5], [0, -0.05, 6, -7], [0, 0, 0, 1.0]])
    return core_mri.Volume(np.exp(-distance).astype(np.float32), affine).reorient(codes)


def center_mm(weights: np.ndarray, affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, weights.shape), indexing="ij"), -1)
    center = (index * weights[..., None]).sum((0, 1, 2)) / weights.sum()
    return affine[:3, :3] @ center + affine[:3, 3]


class TestEncoderAtAnySize:
    @pytest.mark.parametrize("size", [(64, 64), (32, 96), (72, 40), (8, 8)])
    def test_grid_follows_the_image(self, encoder: Encoder, size: tuple[int, int]) -> None:
        features = encoder(torch.rand(2, 1, *size))
        assert features.cls.shape == (2, 128)
        assert features.patches.shape == (2, size[0] // 8, size[1] // 8, 128)
        last = encoder.intermediates(torch.full((1, 1, *size), 0.5), [-1])[0]
        assert torch.equal(last, encoder(torch.full((1, 1, *size), 0.5)).patches)

    def test_sides_that_patches_do_not_tile(self, encoder: Encoder) -> None:
        with pytest.raises(ConfigError, match="60x64"):
            encoder(torch.rand(1, 1, 60, 64))

    @pytest.mark.parametrize("shape", [(1, 4, 64, 64), (1, 64, 64)])
    def test_other_channels(self, encoder: Encoder, shape: tuple[int, ...]) -> None:
        with pytest.raises(DataError, match="1 or 3"):
            encoder(torch.rand(shape))


class TestPredictorEmbed:
    @pytest.mark.parametrize("codes", ["RAS", "LPS", "SPL", "AIL", "PIR"])
    @pytest.mark.parametrize("image_size", [64, 128])
    def test_patches_lie_where_the_scan_has_them(self, codes: str, image_size: int) -> None:
        volume = blob(codes)
        low, high = np.percentile(volume.array, (0.5, 99.5))
        seen = ((volume.array - low) / (high - low)).clip(0, 1)
        found = Predictor(MeanOfPatches(), image_size=image_size).embed(volume)  # type: ignore[arg-type]
        error_mm = center_mm(found.patches[..., 0], found.patch_affine) - center_mm(
            seen, volume.affine
        )
        assert np.abs(error_mm).max() < 0.05

    def test_vectors_alone_are_the_same(self, encoder: Encoder) -> None:
        both = Predictor(encoder).embed(blob())
        alone = Predictor(encoder).embed(blob(), patches=False)
        assert np.array_equal(both.cls, alone.cls)
        assert alone.patches.shape == (6, 0, 0, 128)
        assert both.shape == (6, 44, 64)

    def test_bfloat16_is_close(self, encoder: Encoder) -> None:
        full = Predictor(encoder, precision="float32").embed(blob())
        half = Predictor(encoder, precision="bfloat16").embed(blob())
        error = np.abs(full.patches - half.patches).max() / np.abs(full.patches).max()
        assert 0 < error < 0.05
        assert half.cls.dtype == np.float32

    def test_unknown_precision(self, encoder: Encoder) -> None:
        with pytest.raises(ConfigError, match="float16"):
            Predictor(encoder, precision="float16")

    def test_four_dimensions_and_not_a_number(self, encoder: Encoder) -> None:
        array = np.ones((8, 8, 3, 4), np.float32)
        with pytest.raises(GeometryError, match="three dimensions"):
            Predictor(encoder).embed(core_mri.Volume(array, np.eye(4)))
        array[0, 0, 0, 0] = np.nan
        with pytest.raises(DataError, match="not finite"):
            Predictor(encoder).embed(core_mri.Volume(array[..., 0], np.eye(4)))


@pytest.fixture
def embedding() -> Embedding:
    rng = np.random.default_rng(0)
    affine = np.array([[0, 0, 2, 1], [0, 3, 0, 2], [4, 0, 0, 3], [0, 0, 0, 1.0]])
    cls = rng.normal(size=(5, 7)).astype(np.float32)
    patches = rng.normal(size=(5, 2, 2, 7)).astype(np.float32)
    return Embedding(cls, patches, affine, affine, (5, 10, 20))


class TestFiles:
    def test_npz_keys(self, embedding: Embedding, tmp_path: Path) -> None:
        save_npz(embedding, tmp_path / "a" / "f.npz", volume="scan.nii", weights="ab")
        with np.load(tmp_path / "a" / "f.npz", allow_pickle=False) as arrays:
            assert set(arrays) == {
                *("cls", "patches", "affine", "patch_affine", "shape", "volume", "weights")
            }
            assert np.array_equal(arrays["patches"], embedding.patches)
            assert str(arrays["volume"]) == "scan.nii"

    def test_a_full_disk_leaves_the_old_file(
        self, embedding: Embedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "f.npz"
        save_npz(embedding, path, volume="v", weights="w")
        before = path.read_bytes()

        def full(*_arguments: object, **_arrays: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez", full)
        with pytest.raises(DataError, match="No space left") as caught:
            save_npz(embedding, path, volume="v2", weights="w")
        assert caught.value.code == "DATA-07"
        assert path.read_bytes() == before

    def test_positions_of_slices_and_volume(self, embedding: Embedding) -> None:
        slices = rows_of(embedding, "v", "slice").to_pylist()
        assert [row["slice"] for row in slices] == list(range(5))
        # index (4, 4.5, 9.5): x = 2 * 9.5 + 1, y = 3 * 4.5 + 2, z = 4 * 4 + 3
        assert slices[4]["position_mm"] == [20.0, 15.5, 19.0]
        assert np.array_equal([row["embedding"] for row in slices], embedding.cls)
        (whole,) = rows_of(embedding, "v", "volume").to_pylist()
        assert whole["position_mm"] == [20.0, 15.5, 11.0]
        assert whole["slice"] is None
        assert np.allclose(whole["embedding"], embedding.cls.mean(0))
        assert np.array_equal(whole["affine"], embedding.affine.ravel())

    def test_parts_join_in_order(
        self, embedding: Embedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embeddings, "PART_BYTES", 1)
        parts = TableParts(tmp_path)
        for name in "abc":
            parts.add(rows_of(embedding, name, "volume"))
        (tmp_path / ".part-000003.parquet.partial").write_bytes(b"what a killed process leaves")
        later = TableParts(tmp_path)
        assert later.volumes() == {"a", "b", "c"}
        later.add(rows_of(embedding, "d", "volume"))
        later.join(tmp_path / "all.parquet", {"made": "here"})
        table = pyarrow.parquet.read_table(tmp_path / "all.parquet")
        assert table["volume"].to_pylist() == ["a", "b", "c", "d"]
        assert table.schema.metadata[b"made"] == b"here"


class TestSearch:
    def test_names_below_the_folder(self, tmp_path: Path) -> None:
        image, _ = phantom_volume("brain", 1, size=24, num_slices=3)
        for name in ("b.nii.gz", "a/c.nrrd"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            core_mri.write_volume(image, tmp_path / name)
        core_mri.write_volume(image, tmp_path / "series")
        (tmp_path / "notes.txt").write_text("no scan")
        found, rejected = find_volumes(tmp_path)
        names = [volume.name for volume in found]
        assert names[:2] == ["a/c.nrrd", "b.nii.gz"]
        assert names[2].startswith("series/")
        assert len(names) == 3
        assert not rejected
        assert all(volume.read().same_grid(image) for volume in found[:2])

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such file"):
            find_volumes(tmp_path / "absent")


def test_picture_has_a_color_panel_below_each_slice(encoder: Encoder) -> None:
    volume = phantom_volume("brain", 1, size=48, num_slices=9)[0]
    figure = patch_colors(
        Preprocess().apply(volume).array, Predictor(encoder).embed(volume).patches, columns=4
    )
    assert len(figure.axes) == 8
    colors = figure.axes[4].images[0].get_array()
    assert colors.shape == (48, 48, 3)
