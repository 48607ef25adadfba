from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from core_mri.errors import CoreMRIError
from core_mri.physics import apply_mask, center_lines, draw_mask, mask_seed, undersampling_mask

KINDS = ("random", "equispaced", "equispaced_fraction", "magic", "magic_fraction")


def pack(mask: torch.Tensor) -> str:
    return hashlib.sha1(np.packbits(mask.numpy().ravel()).tobytes()).hexdigest()[:12]


class TestAgainstFastMri:
    def test_every_gold_mask(self, gold: dict[str, Any]) -> None:
        assert len(gold["masks"]) == 5 * 4 * 6 * 4
        for kind, fractions, rates, width, name, low, count, first, digest in gold["masks"]:
            drawn = draw_mask(
                kind, (15, 640, width), center_fractions=fractions, accelerations=rates,
                seed=mask_seed(name),
            )  # fmt: skip
            lines = drawn.mask.ravel().nonzero().ravel()
            got = (drawn.num_low_frequencies, len(lines), lines[:4].tolist(), pack(drawn.mask))
            assert got == (low, count, first, digest), (kind, fractions, width, name)

    def test_any_combination_of_settings(self, gold: dict[str, Any]) -> None:
        for seed, low, digest in gold["combined"]:
            drawn = draw_mask(
                "random", (640, 368), center_fractions=[0.08, 0.04], accelerations=[4, 8, 6],
                seed=seed, allow_any_combination=True,
            )  # fmt: skip
            assert (drawn.num_low_frequencies, pack(drawn.mask)) == (low, digest)

    @pytest.mark.parametrize(
        ("kind", "fraction", "rate", "width", "count", "digest"),
        [
            ("random", 0.08, 4, 368, 81, "5a35c4878c61"),
            ("random", 0.08, 4, 372, 81, "58254def312c"),
            ("random", 0.08, 4, 320, 68, "6baf8775ab55"),
            ("random", 0.04, 8, 368, 44, "1310e2bc5fc3"),
            ("equispaced", 0.08, 4, 368, 114, "be943fbf2431"),
            ("equispaced_fraction", 0.08, 4, 368, 91, "31943cb797cb"),
            ("equispaced_fraction", 0.04, 8, 368, 46, "3f2d1c89a8b8"),
            ("magic", 0.08, 4, 368, 114, "1986c41dc58e"),
            ("magic_fraction", 0.08, 4, 368, 86, "7b9da4d3d5db"),
        ],
    )
    def test_values_of_an_earlier_run(
        self, kind: Any, fraction: float, rate: float, width: int, count: int, digest: str
    ) -> None:
        """Made independently, with PyPI's fastmri 0.3.0 and the file name file1000001.h5."""
        mask = undersampling_mask(
            kind, (1, width), center_fractions=[fraction], accelerations=[rate],
            seed=mask_seed("file1000001.h5"),
        )  # fmt: skip
        assert (int(mask.sum()), pack(mask)) == (count, digest)


class TestProperties:
    @pytest.mark.parametrize("kind", KINDS)
    def test_shape_type_center_and_repeatability(self, kind: Any) -> None:
        for seed in range(10):
            drawn = draw_mask(
                kind, (2, 3, 40, 101), center_fractions=[0.1], accelerations=[4], seed=seed
            )
            again = draw_mask(
                kind, (2, 3, 40, 101), center_fractions=[0.1], accelerations=[4], seed=seed
            )
            assert drawn.mask.shape == (1, 1, 1, 101)
            assert drawn.mask.dtype == torch.bool
            assert torch.equal(drawn.mask, again.mask)
            # The center lies up to a line beside n // 2, as fastMRI rounds it.
            assert center_lines(drawn.mask) >= drawn.num_low_frequencies - 2

    @pytest.mark.parametrize("kind", ["random", "equispaced_fraction", "magic_fraction"])
    def test_mean_acceleration_is_the_one_asked_for(self, kind: Any) -> None:
        lines = [
            int(undersampling_mask(kind, (1, 368), center_fractions=[0.08], accelerations=[4],
                                   seed=seed).sum())
            for seed in range(200)
        ]  # fmt: skip
        assert 368 / np.mean(lines) == pytest.approx(4, rel=0.1)

    def test_the_global_generator_is_left_alone(self) -> None:
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        undersampling_mask("random", (1, 9), center_fractions=[0.2], accelerations=[2], seed=0)
        np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002

    def test_without_seed_masks_differ(self) -> None:
        masks = [
            undersampling_mask("random", (1, 368), center_fractions=[0.08], accelerations=[4],
                               seed=None)
            for _ in range(4)
        ]  # fmt: skip
        assert len({pack(mask) for mask in masks}) == 4

    def test_full_sampling(self) -> None:
        mask = undersampling_mask("random", (1, 30), center_fractions=[0.1], accelerations=[1],
                                  seed=0)  # fmt: skip
        assert mask.all()


class TestCenterLines:
    @pytest.mark.parametrize(
        ("on", "expected"),
        [
            ([], 1),
            ([4], 1),
            ([3, 4], 2),
            ([3, 4, 5], 2),
            ([2, 3, 4, 5], 4),
            (range(8), 8),
            ([0], 1),
        ],
    )
    def test_symmetric_run(self, on: list[int], expected: int) -> None:
        mask = torch.zeros(1, 8, dtype=torch.bool)
        mask[0, list(on)] = True
        assert center_lines(mask) == expected


class TestApply:
    def test_masked_samples_carry_no_sign(self) -> None:
        kspace = torch.tensor([[-1 - 2j, 3 + 4j]])
        masked = apply_mask(kspace, torch.tensor([[False, True]]))
        assert masked.tolist() == [[0, 3 + 4j]]
        assert not torch.signbit(torch.view_as_real(masked)[0, 0]).any()


class TestRefused:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"kind": "poisson"},
            {"shape": (5,)},
            {"center_fractions": []},
            {"center_fractions": [0.1, 0.2]},
            {"center_fractions": [1.5]},
            {"accelerations": [0.5]},
        ],
    )
    def test_wrong_settings(self, wrong: dict[str, Any]) -> None:
        options = {"kind": "random", "shape": (4, 40), "center_fractions": [0.1],
                   "accelerations": [4], "seed": 0, **wrong}  # fmt: skip
        with pytest.raises(CoreMRIError, match="CONFIG-01"):
            undersampling_mask(options.pop("kind"), options.pop("shape"), **options)

    def test_more_center_than_lines(self) -> None:
        with pytest.raises(CoreMRIError, match="CONFIG-05"):
            undersampling_mask("equispaced_fraction", (4, 40), center_fractions=[0.3],
                               accelerations=[4], seed=0)  # fmt: skip
