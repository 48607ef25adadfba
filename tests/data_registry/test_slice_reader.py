"""Slices read by byte positions are those that libhdf5 reads; damage is an error, never a crash."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from core_mri.errors import DataError
from data_registry import Registry, SliceDataset
from data_registry.schema import Codec
from data_registry.shards import FinishedShard, ShardReader, ShardWriter
from data_registry.slice_reader import SlicePlace, SliceReader

CODECS: tuple[Codec, ...] = ("bitshuffle-lz4", "none")
DTYPES = ["uint8", "int16", "uint16", "int32", "float16", "float32", "complex64"]
ALL = ("train", "val", "test")


def write(folder: Path, array: np.ndarray, codec: Codec, name: str = "a.h5") -> FinishedShard:
    with ShardWriter(folder, name, codec) as writer:
        writer.add("x", array, np.eye(4))
        finished = writer.finish()
    assert finished is not None
    return finished


def places(finished: FinishedShard, array: np.ndarray, codec: Codec) -> list[SlicePlace]:
    return [
        SlicePlace("a.h5", **dataclasses.asdict(place), codec=codec, shape=array.shape[1:],
                   dtype=array.dtype)
        for place in finished.places["x"]
    ]  # fmt: skip


def voxels(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(len(dtype) + sum(shape))
    if dtype == "complex64":
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)
    return (rng.random(shape) * 200).astype(dtype)


class TestEqualToLibhdf5:
    @pytest.mark.parametrize("codec", CODECS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(3, 1, 1), (2, 5, 7), (3, 64, 65), (2, 4, 33, 21)])
    def test_every_slice(
        self, tmp_path: Path, dtype: str, shape: tuple[int, ...], codec: Codec
    ) -> None:
        array = voxels(dtype, shape)
        finished = write(tmp_path, array, codec)
        reader, reference = SliceReader(tmp_path), ShardReader(tmp_path)
        for index, place in enumerate(places(finished, array, codec)):
            found = reader.read(place)
            expected = reference.read_slice("a.h5", "x", index)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(found, array[index])

    @pytest.mark.parametrize("codec", CODECS)
    def test_into_a_batch(self, tmp_path: Path, codec: Codec) -> None:
        array = voxels("uint16", (6, 40, 30))
        finished = write(tmp_path, array, codec)
        batch = np.zeros_like(array)
        reader = SliceReader(tmp_path)
        for place, out in zip(places(finished, array, codec), batch, strict=True):
            assert reader.read(place, out) is out
        np.testing.assert_array_equal(batch, array)

    def test_data_set_gives_the_voxels_of_the_registry(self, registry: Registry) -> None:
        slices = SliceDataset(registry, split=ALL, min_foreground=0)
        for position in range(len(slices)):
            row = slices.volume_of(position)
            index = slices[position].index
            np.testing.assert_array_equal(slices.read(position), registry.read_slice(row, index))


class TestSharing:
    @pytest.mark.parametrize("codec", CODECS)
    def test_threads_pickles_and_forks(self, tmp_path: Path, codec: Codec) -> None:
        array = voxels("uint16", (64, 60, 70))
        own = places(write(tmp_path, array, codec), array, codec)
        reader = SliceReader(tmp_path)

        def right(index: int) -> bool:
            return bool((reader.read(own[index % 64]) == array[index % 64]).all())

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(right, range(640)))
        again = pickle.loads(pickle.dumps(reader))
        np.testing.assert_array_equal(again.read(own[5]), array[5])
        child = os.fork()
        if child == 0:
            os._exit(0 if all(map(right, range(64))) else 1)
        assert all(map(right, range(64)))
        assert os.waitpid(child, 0)[1] == 0

    def test_more_shards_than_stay_open(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("data_registry.slice_reader._MAX_OPEN", 2)
        array = voxels("uint8", (2, 9, 9))
        own = places(write(tmp_path, array, "none"), array, "none")
        for name in "bcd":
            shutil.copy(tmp_path / "a.h5", tmp_path / f"{name}.h5")
        reader = SliceReader(tmp_path)
        open_files = Path("/proc/self/fd")
        before = len(list(open_files.iterdir()))
        for name in "abcdabcddcba":
            found = reader.read(own[1]._replace(shard=f"{name}.h5"))
            np.testing.assert_array_equal(found, array[1])
            assert len(list(open_files.iterdir())) <= before + 2


class TestDamage:
    def test_missing_shard(self, tmp_path: Path) -> None:
        array = voxels("uint8", (2, 9, 9))
        (place, _) = places(write(tmp_path, array, "none"), array, "none")
        (tmp_path / "a.h5").unlink()
        with pytest.raises(DataError, match=r"a\.h5 is missing") as caught:
            SliceReader(tmp_path).read(place)
        assert caught.value.code == "DATA-08"

    @pytest.mark.parametrize("codec", CODECS)
    def test_cut_shard(self, tmp_path: Path, codec: Codec) -> None:
        array = voxels("uint16", (2, 60, 60))
        place = places(write(tmp_path, array, codec), array, codec)[1]
        content = (tmp_path / "a.h5").read_bytes()
        (tmp_path / "a.h5").write_bytes(content[: place.byte_start + place.num_bytes // 2])
        with pytest.raises(DataError, match="is cut off"):
            SliceReader(tmp_path).read(place)

    def test_no_flipped_bit_of_a_compressed_slice_passes_or_crashes(self, tmp_path: Path) -> None:
        """Block lengths and sizes are among them, which the decoder itself trusts."""
        array = voxels("uint16", (1, 40, 40))
        (place,) = places(write(tmp_path, array, "bitshuffle-lz4"), array, "bitshuffle-lz4")
        whole = (tmp_path / "a.h5").read_bytes()
        reader = SliceReader(tmp_path)
        for bit in np.random.default_rng(0).integers(0, 8 * place.num_bytes, 300).tolist():
            content = bytearray(whole)
            content[place.byte_start + bit // 8] ^= 1 << bit % 8
            with (tmp_path / "a.h5").open("r+b") as file:
                file.write(content)
            with pytest.raises(DataError, match="is damaged at byte"):
                reader.read(place)

    def test_wrong_catalogue(self, tmp_path: Path) -> None:
        """A place that is right by its checksum but of another shape is refused."""
        array = voxels("uint16", (1, 40, 40))
        (place,) = places(write(tmp_path, array, "bitshuffle-lz4"), array, "bitshuffle-lz4")
        with pytest.raises(DataError, match="another size"):
            SliceReader(tmp_path).read(place._replace(shape=(10, 10)))
