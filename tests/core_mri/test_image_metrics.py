from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from core_mri.metrics import nmse, psnr, ssim

METRICS = {"nmse": nmse, "psnr": psnr, "ssim": ssim}


def pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = rng.random((3, 16, 18)) + 0.1
    return reference, reference + 0.05 * rng.standard_normal(reference.shape)


class TestAgainstFastMri:
    @pytest.mark.parametrize("name", METRICS)
    def test_gold_values(self, name: str, gold: dict[str, Any], maker: ModuleType) -> None:
        for case in gold["metrics"]:
            reference, estimate = maker.volumes(case["seed"], tuple(case["shape"]))
            assert METRICS[name](reference, estimate) == pytest.approx(case[name], rel=1e-10)


class TestProperties:
    def test_perfect(self) -> None:
        x, _ = pair()
        assert (nmse(x, x), psnr(x, x), ssim(x, x)) == (0.0, float("inf"), pytest.approx(1.0))

    @pytest.mark.parametrize("name", METRICS)
    def test_scaling_both_changes_nothing(self, name: str) -> None:
        x, y = pair()
        assert METRICS[name](1e-6 * x, 1e-6 * y) == pytest.approx(METRICS[name](x, y), rel=1e-6)

    @pytest.mark.parametrize("name", METRICS)
    def test_order_of_slices_does_not_matter(self, name: str) -> None:
        x, y = pair()
        assert METRICS[name](x[::-1], y[::-1]) == pytest.approx(METRICS[name](x, y))

    @pytest.mark.parametrize("name", METRICS)
    def test_torch_and_numpy_agree(self, name: str) -> None:
        x, y = (a.astype(np.float32) for a in pair())
        got = METRICS[name](torch.from_numpy(x).requires_grad_(), torch.from_numpy(y))
        assert got == METRICS[name](x, y)

    def test_nmse_and_psnr_by_hand(self) -> None:
        reference = np.zeros((1, 7, 7))
        reference[0, 0, :2] = 3, 4
        estimate = reference.copy()
        estimate[0, 0, 0] = 4
        assert nmse(reference, estimate) == pytest.approx(1 / 25)
        assert psnr(reference, estimate) == pytest.approx(10 * np.log10(16 * 49))

    def test_range_is_that_of_the_volume_not_of_the_slice(self) -> None:
        x, y = pair()
        x[0] *= 0.01
        y[0] *= 0.01
        apart = np.mean([psnr(a[None], b[None]) for a, b in zip(x, y, strict=True)])
        assert abs(psnr(x, y) - apart) > 0.5


class TestRefused:
    @pytest.mark.parametrize("name", METRICS)
    def test_bad_volumes(self, name: str) -> None:
        x, y = pair()
        metric = METRICS[name]
        with pytest.raises(ValueError, match="shapes"):
            metric(x, y[:2])
        with pytest.raises(ValueError, match="shapes"):
            metric(x[0], y[0])
        with pytest.raises(ValueError, match="finite"):
            metric(x, np.where(y > 1, np.nan, y))
        with pytest.raises(ValueError, match="no positive"):
            metric(np.zeros_like(x), y)

    def test_slices_smaller_than_the_window(self) -> None:
        x, y = pair()
        with pytest.raises(ValueError, match="7x7"):
            ssim(x[:, :6], y[:, :6])
