"""What is stored gives every voxel back bit by bit, in the smallest type that can."""

from __future__ import annotations

import numpy as np
import pytest

from data_registry.payloads import pack, unpack

KINDS = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32"]


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return first.dtype == second.dtype and first.tobytes() == second.tobytes()


def back(voxels: np.ndarray) -> np.ndarray:
    payload = pack(voxels)
    return unpack(payload.array, voxels.dtype, payload.scale)


class TestExact:
    @pytest.mark.parametrize("dtype", KINDS)
    @pytest.mark.parametrize("seed", range(5))
    def test_any_voxels_of_any_type(self, dtype: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        size = np.dtype(dtype).itemsize
        voxels = rng.integers(0, 256, (3, 5, 7 * size), np.uint8).view(dtype)
        if dtype == "float32":
            voxels = np.where(np.isfinite(voxels), voxels, 0)
        assert same(back(voxels), voxels)

    @pytest.mark.parametrize("seed", range(40))
    def test_rescaled_integers_are_found_and_come_back(self, seed: int) -> None:
        """Slope and intercept as readers apply them: in float32 or in float64."""
        rng = np.random.default_rng(seed)
        counts = rng.integers(0, 2 ** rng.integers(6, 16), (4, 32, 32))
        dtype = np.float32 if seed % 3 else np.float64
        slope = dtype(10.0 ** rng.uniform(-6, 3))
        intercept = dtype(0 if seed % 2 else slope * rng.integers(-1000, 1000))
        voxels = (counts.astype(dtype) * slope + intercept).astype(np.float32)
        assert same(back(voxels), voxels)
        if seed % 2:
            assert pack(voxels).array.itemsize <= 2

    @pytest.mark.parametrize(
        "voxels",
        [
            np.zeros((2, 3, 3), np.float32),
            np.full((2, 3, 3), -0.0, np.float32),
            np.array([[[0.0, -0.0, 1.0]]], np.float32),
            np.array([[[np.finfo(np.float32).tiny / 8, 0, 1]]], np.float32),
            np.array([[[3e38, -3e38, 0]]], np.float32),
            np.array([[[65504, 65520, 1e-8]]], np.float32),
            np.array([[[0, 65535]]], np.float32),
            np.array([[[0, 65536]]], np.float32),
            np.array([[[-32768, 32767]]], np.float32),
            np.array([[[1 << 62, -(1 << 62)]]], np.int64),
            np.zeros((0, 3, 3), np.float32),
        ],
    )
    def test_edges(self, voxels: np.ndarray) -> None:
        assert same(back(voxels), voxels)

    def test_a_slice_of_the_payload_is_a_slice_of_the_voxels(self) -> None:
        voxels = (np.arange(4 * 5 * 6).reshape(4, 5, 6) * np.float32(0.37)).astype(np.float32)
        payload = pack(voxels)
        assert payload.array.dtype.kind in "iu"
        part = unpack(payload.array[2], voxels.dtype, payload.scale)
        assert same(part, voxels[2])

    def test_k_space_stays(self) -> None:
        samples = np.ones((2, 3, 4), np.complex64) * (1 + 2j)
        assert pack(samples).array is samples


class TestSmallest:
    @pytest.mark.parametrize(
        ("values", "dtype", "payload"),
        [
            ([0, 200], "int64", "uint8"),
            ([0, 300], "int32", "int16"),
            ([-5, 300], "int32", "int16"),
            ([0, 40000], "int32", "uint16"),
            ([-1, 40000], "int32", "int32"),
            ([0, 300], "int16", "int16"),
            ([0, 4095], "float32", "int16"),
            ([0, 255], "float32", "uint8"),
            ([0.5, 1.0, 2.25], "float32", "uint8"),
            ([1.5, 1024.25, 3e-5], "float32", "float32"),
        ],
    )
    def test_type(self, values: list[float], dtype: str, payload: str) -> None:
        assert pack(np.array([[values]], dtype)).array.dtype == payload

    def test_half_precision(self) -> None:
        voxels = np.random.default_rng(0).normal(0, 1, (4, 8, 8)).astype(np.float16)
        assert pack(voxels.astype(np.float32)).array.dtype == np.float16
