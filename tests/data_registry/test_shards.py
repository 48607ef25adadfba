from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core_mri.errors import DataError
from data_registry.schema import Codec
from data_registry.shards import PARTIAL, ShardReader, ShardWriter, StoredSlice

CODECS: tuple[Codec, ...] = ("bitshuffle-lz4", "none")


def voxels(dtype: str, shape: tuple[int, ...] = (5, 17, 23)) -> np.ndarray:
    return (np.random.default_rng(0).random(shape) * 250).astype(dtype)


def write(folder: Path, array: np.ndarray, codec: Codec = "none") -> dict[str, list[StoredSlice]]:
    with ShardWriter(folder, "a.h5", codec) as writer:
        writer.add("first", array, np.eye(4))
        writer.add("second", array[:2], np.eye(4))
        finished = writer.finish()
    assert finished is not None
    return finished.places


class TestRoundTrip:
    @pytest.mark.parametrize("codec", CODECS)
    @pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32"])
    def test_values_and_type_are_exact(self, tmp_path: Path, dtype: str, codec: Codec) -> None:
        array = voxels(dtype)
        write(tmp_path, array, codec)
        reader = ShardReader(tmp_path)
        back = reader.read("a.h5", "first")
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)
        np.testing.assert_array_equal(reader.read_slice("a.h5", "second", 1), array[1])

    def test_byte_positions_of_plain_slices(self, tmp_path: Path) -> None:
        array = voxels("uint16")
        places = write(tmp_path, array)
        content = (tmp_path / "a.h5").read_bytes()
        for index, place in enumerate(places["first"]):
            stored = content[place.byte_start : place.byte_start + place.num_bytes]
            assert stored == array[index].tobytes()

    def test_every_compressed_slice_has_a_place(self, tmp_path: Path) -> None:
        places = write(tmp_path, voxels("uint16"), "bitshuffle-lz4")
        spans = sorted(
            (p.byte_start, p.byte_start + p.num_bytes) for s in places.values() for p in s
        )
        assert len(spans) == 7
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


class TestReader:
    def test_pickled_reader_reads(self, tmp_path: Path) -> None:
        array = voxels("uint16")
        write(tmp_path, array)
        reader = ShardReader(tmp_path)
        reader.read_slice("a.h5", "first", 0)
        again = pickle.loads(pickle.dumps(reader))
        np.testing.assert_array_equal(again.read_slice("a.h5", "first", 2), array[2])

    def test_forked_process_reads_for_itself(self, tmp_path: Path) -> None:
        array = voxels("uint16", (8, 64, 64))
        write(tmp_path, array, "bitshuffle-lz4")
        reader = ShardReader(tmp_path)
        reader.read_slice("a.h5", "first", 0)
        child = os.fork()
        if child == 0:
            ok = all((reader.read_slice("a.h5", "first", i) == array[i]).all() for i in range(8))
            os._exit(0 if ok else 1)
        assert all((reader.read_slice("a.h5", "first", i) == array[i]).all() for i in range(8))
        assert os.waitpid(child, 0)[1] == 0

    def test_more_shards_than_stay_open(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("data_registry.shards._MAX_OPEN_FILES", 2)
        monkeypatch.setattr("data_registry.shards._MAX_OPEN_DATASETS", 3)
        for name in "abcd":
            with ShardWriter(tmp_path, f"{name}.h5", "none") as writer:
                writer.add("x", np.full((2, 3, 3), ord(name)), np.eye(4))
                writer.finish()
        reader = ShardReader(tmp_path)
        for name in "abcdabcddcba":
            assert reader.read_slice(f"{name}.h5", "x", 1)[0, 0] == ord(name)

    def test_missing_shard(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"gone\.h5") as caught:
            ShardReader(tmp_path).read("gone.h5", "x")
        assert caught.value.code == "DATA-08"

    @pytest.mark.parametrize("keep", [10, 3000])
    def test_damaged_shard(self, tmp_path: Path, keep: int) -> None:
        write(tmp_path, voxels("uint16"))
        path = tmp_path / "a.h5"
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError) as caught:
            ShardReader(tmp_path).read("a.h5", "first")
        assert caught.value.code == "DATA-08"


class TestAllOrNothing:
    def test_nothing_under_the_final_name_before_finish(self, tmp_path: Path) -> None:
        with ShardWriter(tmp_path, "a.h5") as writer:
            writer.add("x", voxels("uint16"), np.eye(4))
            assert [p.name for p in tmp_path.iterdir()] == [f"{PARTIAL}a.h5"]
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("codec", CODECS)
    def test_full_disk(self, tmp_path: Path, codec: Codec) -> None:
        """In a process of its own, whose files may not grow: HDF5 itself would crash here."""
        code = f"""
import resource, sys
import numpy as np
from pathlib import Path
from core_mri.errors import DataError
from data_registry.shards import ShardWriter
sys.dont_write_bytecode = True  # half a .pyc file would break every later import of its module
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
noise = np.random.default_rng(0).integers(0, 60_000, (20, 64, 64)).astype(np.uint16)
try:
    with ShardWriter(Path({str(tmp_path)!r}), "a.h5", {codec!r}) as writer:
        for name in "xyz":
            writer.add(name, noise, np.eye(4))
        writer.finish()
except DataError as error:
    sys.exit(7 if error.code == "DATA-07" else 1)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (7, "")
        assert list(tmp_path.iterdir()) == []
