"""What a volume must fulfil before it is stored."""

from __future__ import annotations

import numpy as np
import pytest

from core_mri.errors import CoreMRIError
from core_mri.volume import Volume
from data_registry.checks import NOISE_CORRELATION, check_volume, neighbor_correlation


def volume(array: np.ndarray, *, spacing: float = 1.0, kind: str = "image") -> Volume:
    return Volume(array, np.diag([spacing, 1.0, 1.0, 1.0]), kind=kind)  # type: ignore[arg-type]


def ramp(dtype: str = "float32") -> np.ndarray:
    return np.arange(24, dtype=dtype).reshape(2, 3, 4)


def code_of(bad: Volume, **options: object) -> str:
    with pytest.raises(CoreMRIError) as caught:
        check_volume(bad, **options)  # type: ignore[arg-type]
    return caught.value.code


class TestAccepted:
    @pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64", "complex64"])
    def test_ordinary(self, dtype: str) -> None:
        check_volume(volume(ramp(dtype)))

    def test_empty_label_map(self) -> None:
        check_volume(volume(np.zeros((2, 3, 4), "uint8"), kind="label"), allowed_labels={0, 1})

    def test_labels_of_the_list(self) -> None:
        labels = np.array([[[0, 2], [2, 5]]], "uint8")
        check_volume(volume(labels, kind="label"), allowed_labels=[0, 1, 2, 5])


class TestRefused:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, value: float) -> None:
        array = ramp()
        array[1, 0, 2] = array[1, 2, 3] = value
        with pytest.raises(CoreMRIError, match=r"2 of 24 .* \(1, 0, 2\)") as caught:
            check_volume(volume(array))
        assert caught.value.code == "DATA-04"

    def test_constant(self) -> None:
        assert code_of(volume(np.full((2, 3, 4), 7, "int16"))) == "DATA-05"

    def test_almost_constant_is_not(self) -> None:
        array = np.full((2, 3, 4), 7, "int16")
        array[-1, -1, -1] = 8
        check_volume(volume(array))

    def test_foreign_labels(self) -> None:
        labels = volume(np.array([[[0, 3], [9, 1]]], "uint8"), kind="label")
        with pytest.raises(CoreMRIError, match=r"2 label value\(s\).*\[3, 9\]") as caught:
            check_volume(labels, allowed_labels={0, 1})
        assert caught.value.code == "DATA-06"

    @pytest.mark.parametrize("spacing", [0.009, 101.0])
    def test_absurd_spacing(self, spacing: float) -> None:
        assert code_of(volume(ramp(), spacing=spacing)) == "GEOMETRY-01"

    def test_zero_spacing_is_no_volume(self) -> None:
        with pytest.raises(CoreMRIError, match="GEOMETRY-01"):
            volume(ramp(), spacing=0.0)


class TestNoise:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("shape", [(64, 64, 1), (32, 32, 8), (32, 32, 4, 3)])
    def test_white_noise_is_no_image(self, seed: int, shape: tuple[int, ...]) -> None:
        noise = np.random.default_rng(seed).integers(0, 4096, shape).astype("uint16")
        assert noise.size >= 2000
        assert code_of(volume(noise)) == "DATA-12"

    @pytest.mark.parametrize("region", ["brain", "knee", "abdomen"])
    def test_phantoms_are_images_even_under_strong_noise(self, region: str) -> None:
        from core_mri.physics.phantoms import phantom_volume

        image, _ = phantom_volume(region, 0, "T1", size=48, num_slices=4)
        array = image.array.astype(np.float64)
        noise = np.random.default_rng(0).normal(0, array.std(), array.shape)
        assert neighbor_correlation(array + noise) > 4 * NOISE_CORRELATION
        check_volume(image.with_array(array + noise))

    def test_a_label_map_may_be_anything(self) -> None:
        noise = np.random.default_rng(0).integers(0, 2, (32, 32, 8)).astype("uint8")
        check_volume(volume(noise, kind="label"))

    def test_correlation_is_that_of_numpy(self) -> None:
        array = np.random.default_rng(0).standard_normal((1, 1, 12)).cumsum(axis=2)
        expected = abs(np.corrcoef(array[0, 0, :-1], array[0, 0, 1:])[0, 1])
        assert neighbor_correlation(array) == pytest.approx(expected)
