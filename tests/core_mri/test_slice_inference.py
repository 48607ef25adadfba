from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core_mri.consistency import remove_islands, smooth_across
from core_mri.errors import GeometryError, WeightsError
from core_mri.models.encoder import Encoder
from core_mri.models.heads import DECODERS
from core_mri.models.registry import EncoderConfig
from core_mri.models.segmenter import Inference, Segmenter
from core_mri.predictor import Predictor
from core_mri.slice_grid import SliceGrid
from core_mri.slice_inference import segment_slices, windows
from core_mri.volume import Volume

SPACING = (5.0, 1.0, 1.0)


def segmenter(decoder: str = "light", *, neighbours: int = 0, sequences: int = 1, **how: object):
    torch.manual_seed(3)
    encoder = Encoder(
        EncoderConfig(embed_dim=32, depth=2, num_heads=2, patch_size=8, image_size=32)
    )
    head = DECODERS[decoder](
        32, 3, 2, patch_size=8, width=8, planes=(2 * neighbours + 1) * sequences
    )
    return Segmenter(
        encoder,
        head,
        depths=(0, 1),
        labels={1: "a", 2: "b"},
        image_size=32,
        sequences=("",) if sequences == 1 else tuple(f"S{i}" for i in range(sequences)),
        neighbours=neighbours,
        inference=Inference(**how),  # type: ignore[arg-type]
    ).eval()


def scan(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def logits_of(model: Segmenter, slices: np.ndarray, batch: int = 16) -> Tensor:
    """What `segment_slices` takes the largest of."""
    from core_mri.slice_inference import _View

    channels = slices[None] if slices.ndim == 3 else slices
    count = channels.shape[1]
    view = _View(model, channels, SPACING, model.image_size, False, 1.0)
    with torch.no_grad():
        return torch.cat([view.logits(i, min(i + batch, count)) for i in range(0, count, batch)])


class TestWindows:
    @torch.no_grad()
    def test_the_same_as_monai(self) -> None:
        from monai.inferers import sliding_window_inference

        model = segmenter(pixel_mm=1.0, overlap=0.25)
        slices = scan(3, 70, 45)
        theirs = sliding_window_inference(
            torch.from_numpy(slices)[:, None], (32, 32), 4, model, overlap=0.25, mode="gaussian"
        )
        assert len(windows((70, 45), 32, 0.25)) == 6
        assert torch.allclose(logits_of(model, slices), theirs, atol=1e-4)

    def test_a_slice_that_fits_is_one_window(self) -> None:
        assert windows((32, 32), 32, 0.25) == [(0, 0)]
        assert windows((20, 32), 32, 0.25) == [(0, 0)]

    def test_batches_do_not_matter(self) -> None:
        for neighbours in (0, 1, 2):
            model = segmenter(neighbours=neighbours, pixel_mm=1.0)
            slices = scan(7, 40, 24)
            whole, parts = (logits_of(model, slices, batch) for batch in (16, 2))
            assert torch.allclose(whole, parts, atol=1e-4)


class TestNeighbours:
    @pytest.mark.parametrize("sequences", [1, 2])
    @torch.no_grad()
    def test_the_same_as_encoding_every_plane(self, sequences: int) -> None:
        model = segmenter(neighbours=1, sequences=sequences)
        slices = scan(sequences, 5, 32, 32)
        padded = torch.from_numpy(slices[:, [0, 0, 1, 2, 3, 4, 4]]).swapaxes(0, 1)
        planes = torch.stack([padded[i : i + 3].flatten(0, 1) for i in range(5)])
        assert torch.allclose(logits_of(model, slices, 2), model(planes), atol=1e-4)

    def test_every_slice_is_encoded_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = segmenter(neighbours=1)
        seen = []
        encode = model.encoder.intermediates
        monkeypatch.setattr(
            model.encoder, "intermediates", lambda x, d: seen.append(len(x)) or encode(x, d)
        )
        segment_slices(model, scan(9, 32, 32), SPACING, batch_size=2)
        assert sum(seen) == 9


class Threshold(nn.Module):
    """A decoder whose answer is known: class 1 where the image is brighter than one half."""

    def forward(self, _levels: list[Tensor], images: Tensor) -> Tensor:
        return torch.cat([torch.full_like(images, 0.5), images, images - 1], 1) * 20


class TestViews:
    def bright(self) -> np.ndarray:
        slices = np.zeros((6, 40, 48), dtype=np.float32)
        slices[1:5, 6:20, 10:37] = 1
        slices[2, 30:34, 4:9] = 1
        return slices

    @pytest.mark.parametrize(
        "how",
        [
            {},
            {"mirror": True},
            {"scales": (1.0, 1.5)},
            {"pixel_mm": 1.0},
            {"pixel_mm": 0.5},
            {"pixel_mm": 0.8, "mirror": True, "scales": (0.75, 1.0)},
        ],
    )
    def test_every_view_puts_the_structure_on_its_pixels(self, how: dict[str, object]) -> None:
        model = segmenter(**how)
        model.head = Threshold()  # type: ignore[assignment]
        found = segment_slices(model, self.bright(), SPACING)
        right = (found == 1) == (self.bright() > 0.5)
        edges = right.size - right.sum()
        assert edges <= 0.01 * right.size
        if how.get("pixel_mm") == 1.0:
            assert right.all()

    def test_mirrored_slices_give_mirrored_masks(self) -> None:
        model = segmenter(mirror=True)
        slices = scan(2, 32, 32)
        straight = segment_slices(model, slices, SPACING)
        turned = segment_slices(model, np.ascontiguousarray(slices[..., ::-1]), SPACING)
        assert (straight == turned[..., ::-1]).mean() > 0.999


class TestGrid:
    @pytest.mark.parametrize("pixel_mm", [0.7, 1.0, 2.0])
    def test_a_smooth_image_comes_back(self, pixel_mm: float) -> None:
        rows, columns = np.mgrid[0:60, 0:40]
        image = (0.5 + 0.4 * np.sin(rows / 12) * np.cos(columns / 9)).astype(np.float32)[None]
        grid = SliceGrid(rows=60, columns=40, size=32, pixel_mm=pixel_mm, spacing_mm=(0.9, 1.3))
        images = grid.images(image)
        assert images.shape[-2:] == grid.shape
        assert min(grid.shape) >= 32
        back = grid.restore(images)[0, 0].numpy()
        assert np.abs(back - image[0])[3:-3, 3:-3].max() < 0.03

    def test_pixels_have_the_size_that_was_asked_for(self) -> None:
        grid = SliceGrid(rows=60, columns=40, size=8, pixel_mm=0.5, spacing_mm=(1.0, 2.0))
        assert grid.resampled == grid.shape == (120, 160)


class TestConsistency:
    def test_smoothing_keeps_sums_and_constants(self) -> None:
        probabilities = torch.rand(7, 3, 4, 4).softmax(1)
        smooth = smooth_across(probabilities, 2.0, 3.0)
        assert torch.allclose(smooth.sum(1), torch.ones(7, 4, 4), atol=1e-6)
        same = probabilities[:1].expand(7, -1, -1, -1)
        assert torch.allclose(smooth_across(same, 2.0, 3.0), same, atol=1e-6)

    def test_the_gap_counts(self) -> None:
        spike = torch.zeros(5, 1, 1, 1)
        spike[2] = 1
        near, far = (smooth_across(spike, gap, 2.0)[2].item() for gap in (1.0, 4.0))
        assert near < far < 1
        assert torch.equal(smooth_across(spike, 7.0, 2.0), spike)
        assert torch.equal(smooth_across(spike, 1.0, 0.0), spike)

    def test_weights_are_gaussian(self) -> None:
        spike = torch.zeros(9, 1, 1, 1)
        spike[4] = 1
        smooth = smooth_across(spike, 1.0, 1.0).flatten()
        assert (smooth[5] / smooth[4]).item() == pytest.approx(np.exp(-0.5), rel=1e-5)

    def test_islands(self) -> None:
        classes = np.zeros((3, 20, 20), dtype=np.uint8)
        classes[:, 2:8, 2:8] = 1
        classes[1, 15, 15] = 1
        classes[1, 12:14, 2:4] = 2
        kept = remove_islands(classes, 0.1)
        assert kept[1, 15, 15] == 0
        assert (kept == 1).sum() == 3 * 36
        assert (kept == 2).sum() == 4
        assert remove_islands(classes, 0.0) is classes
        assert not remove_islands(np.zeros((2, 3, 3), dtype=np.uint8), 1.0).any()


class TestPredictor:
    @pytest.mark.parametrize("decoder", DECODERS)
    @pytest.mark.parametrize("codes", ["RAS", "LPS", "SPL", "AIL", "PIR"])
    def test_the_same_voxels_for_any_orientation(self, decoder: str, codes: str) -> None:
        """Trained or not, a model answers about tissue, not about how a file stores it."""
        model = segmenter(decoder, neighbours=1, pixel_mm=1.1)
        affine = np.array([[1, 0.1, 0, 3], [-0.1, 1, 0, 5], [0, 0, 6, -7], [0, 0, 0, 1.0]])
        volume = Volume(scan(40, 30, 5), affine)
        turned = volume.reorient(codes)
        mask = Predictor(model).segment(volume)
        found = Predictor(model).segment(turned)
        assert found.same_grid(turned)
        assert np.array_equal(found.reorient("RAS").array, mask.reorient("RAS").array)

    def test_several_sequences(self) -> None:
        model = segmenter(sequences=2)
        first, second = (Volume(scan(32, 32, 3) * scale, np.eye(4)) for scale in (1, 2))
        mask = Predictor(model).segment(first, sequences=[second])
        assert mask.same_grid(first)
        with pytest.raises(WeightsError, match=r"2 sequences together \(S0, S1\), got 1") as caught:
            Predictor(model).segment(first)
        assert caught.value.code == "WEIGHTS-09"
        moved = replace(second, affine=np.diag([1.0, 1, 2, 1]))
        with pytest.raises(GeometryError):
            Predictor(model).segment(first, sequences=[moved])
