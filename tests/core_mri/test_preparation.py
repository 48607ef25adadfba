from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from core_mri.physics import center_crop, crop_size, normalize_instance, zero_padding


class TestCrop:
    @pytest.mark.parametrize("size", [(8, 8), (9, 7), (320, 372)])
    @pytest.mark.parametrize("crop", [(4, 4), (5, 7), (1, 2)])
    def test_starts_at_half_of_what_is_left(
        self, size: tuple[int, int], crop: tuple[int, int]
    ) -> None:
        x = torch.arange(size[0] * size[1]).reshape(1, *size)
        cut = center_crop(x, crop)
        assert cut.shape == (1, *crop)
        assert cut[0, 0, 0] == x[0, (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2]

    def test_gold_values(self, gold: dict[str, Any], maker: ModuleType) -> None:
        for case in gold["fft"]:
            x = torch.from_numpy(maker.arrays(case["seed"], tuple(case["shape"])))
            expected = torch.tensor(case["crop"], dtype=torch.float64)
            got = torch.view_as_real(center_crop(x, (1, 3)).contiguous())
            torch.testing.assert_close(got, expected, rtol=0, atol=0)

    @pytest.mark.parametrize("crop", [(0, 3), (9, 3), (3, 9)])
    def test_impossible(self, crop: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match="cannot crop 8x8"):
            center_crop(torch.zeros(8, 8), crop)

    def test_narrow_kspace_decides(self) -> None:
        """Three FLAIR volumes of fastMRI are narrower than their reconstruction size."""
        assert crop_size((320, 320), 368) == (320, 320)
        assert crop_size((320, 320), 264) == (264, 264)


class TestPadding:
    def test_only_acquired_lines_stay(self) -> None:
        mask = torch.ones(1, 1, 10, dtype=torch.bool)
        assert zero_padding(mask, 2, 7).ravel().nonzero().ravel().tolist() == [2, 3, 4, 5, 6]
        mask[..., 3] = False
        assert zero_padding(mask, 2, 7).ravel().nonzero().ravel().tolist() == [2, 4, 5, 6]
        assert zero_padding(mask, 0, 10).equal(mask)


class TestNormalizeInstance:
    def test_gold_values(self, gold: dict[str, Any], maker: ModuleType) -> None:
        for case in gold["instance"]:
            reference, _ = maker.volumes(case["seed"], tuple(case["shape"]))
            image, mean, std = normalize_instance(torch.from_numpy(reference))
            assert float(mean) == pytest.approx(case["mean"], rel=1e-12)
            assert float(std) == pytest.approx(case["std"], rel=1e-12)
            assert image.ravel()[:5].tolist() == pytest.approx(case["first"], rel=1e-9)

    def test_way_back(self) -> None:
        x = torch.rand(5, 6, dtype=torch.float64)
        image, mean, std = normalize_instance(x)
        torch.testing.assert_close(image * std + mean, x)

    def test_empty_image_is_no_nan(self) -> None:
        assert (normalize_instance(torch.zeros(4, 4)).image == 0).all()
