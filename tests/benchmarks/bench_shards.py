"""How fast slices are read in random order, beside other formats; how much memory ingest takes.

    python tests/benchmarks/bench_shards.py
    PYTHONPATH=$PWD:REFS python tests/benchmarks/bench_shards.py   # REFS: see below

Reading: shuffled batches of 64 slices of 256x256 uint16, copied into one array, page cache warm,
one process. All stores take turns in each round; the number is slices per CPU-second (median of the
rounds), and the ratios to the memory map of the same run are what other machines can compare.
WebDataset has no random access, and LitData's takes ten times as long as its own order: they are
read in their own, shuffled one.
Memory: peak resident size of the ingesting process and of its workers, for N and 4 N volumes.
The slices are synthetic: a smooth object on Rician noise.

The other formats are measured where they are installed, each as its manual advises, in a folder of
their own: ``pip install --target REFS zarr pylance litdata webdataset``.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_registry import Registry, SliceDataset
from data_registry.commits import commit
from data_registry.schema import Codec, ShardRow
from data_registry.shards import ShardReader, ShardWriter
from data_registry.storing import PixelHash, make_row, measure, slice_rows

SIZE = 256
BATCH = 64
CODECS: tuple[Codec, ...] = ("none", "bitshuffle-lz4")

Batch = npt.NDArray[np.uint16]
Chosen = npt.NDArray[np.int64]
Read = Callable[[Chosen], None]


def synthetic_volume(seed: int, num_slices: int, size: int = SIZE) -> Batch:
    """A smooth bright object with Rician noise, ``[slices, size, size]``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    brightness = rng.uniform(0.7, 1.3, (num_slices, 1, 1))
    signal = 900 * brightness * np.exp(-(((x / 0.28) ** 2 + (y / 0.34) ** 2) ** 4))
    real, imaginary = rng.normal(0, 18, (2, num_slices, size, size))
    return np.hypot(signal + real, imaginary).astype(np.uint16)


class Stores:
    """The same slices in every format that is installed, and what reads a batch of each.

    Args:
        folder: Where they are written.
        volumes: All of one number of slices.
    """

    def __init__(self, folder: Path, volumes: list[Batch]) -> None:
        folder.mkdir()
        self._folder = folder
        self._volumes = volumes
        self._depth = len(volumes[0])
        self.num_slices = self._depth * len(volumes)
        self.batch = np.empty((BATCH, SIZE, SIZE), np.uint16)
        self.reads: dict[str, Read] = {}
        self.write_seconds: dict[str, float] = {}
        self.missing: list[str] = []
        self._make("memmap", "", self._memmap)
        for codec in CODECS:
            self._make(f"core-mri {codec}", "", self._registry, codec)
            self.reads[f"  its HDF5 by libhdf5 {codec}"] = self._libhdf5(codec)
        self._make("Zarr 3 shards, blosc-LZ4", "zarr", self._zarr)
        self._make("Lance, raw bytes", "lance", self._lance)
        self._make("LitData (its own shuffle)", "litdata", self._litdata)
        self._make("WebDataset (sequential)", "webdataset", self._webdataset)

    def _make(self, name: str, module: str, make: Callable[..., Read], *more: object) -> None:
        if module and importlib.util.find_spec(module) is None:
            self.missing.append(name)
            return
        start = time.process_time()
        self.reads[name] = make(self._folder / name.replace(" ", "_"), *more)
        self.write_seconds[name] = time.process_time() - start

    def size(self, name: str) -> int:
        """Bytes on disk."""
        path = self._folder / name.replace(" ", "_")
        return sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())

    def slices(self) -> Iterator[Batch]:
        """All slices in order."""
        for volume in self._volumes:
            yield from volume

    def _memmap(self, path: Path) -> Read:
        shape = (self.num_slices, SIZE, SIZE)
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=shape)
        for index, voxels in enumerate(self.slices()):
            file[index] = voxels
        file.flush()
        plain = np.load(path, mmap_mode="r")

        def read(chosen: Chosen) -> None:
            for place, index in enumerate(chosen):
                self.batch[place] = plain[index]

        return read

    def _registry(self, path: Path, codec: Codec) -> Read:
        """A registry as ingest makes it: voxels, hashes, percentiles, checksums and rows."""
        registry = Registry.create(path)
        rows, slices, common = [], [], {
            "subject_id": "P", "study_id": "", "series_id": "S", "source": "a", "split": "train",
            "licence": "CC0-1.0", "role": "image", "synthetic": True, "plane": "axial",
            "region": "brain", "region_by": "", "region_confidence": 1.0, "sequence": "T1",
            "sequence_by": "", "sequence_confidence": 1.0, "vendor": "unknown",
            "field_strength_t": None,
        }  # fmt: skip
        with ShardWriter(path / "shards", "a.h5", codec) as writer:
            for voxels in self._volumes:
                digest = PixelHash(voxels.dtype, voxels.shape)
                digest.add(voxels)
                row = make_row(voxels.dtype, voxels.shape, np.eye(4), common, digest.text(), None)
                row, foreground = measure(row, voxels)
                writer.add(row.dataset, voxels, np.eye(4))
                rows.append((row, foreground))
            finished = writer.finish()
        assert finished is not None
        for row, foreground in rows:
            places = finished.places[row.dataset]
            slices += [
                type(s)(**{**vars(s), **vars(places[s.index])})
                for s in slice_rows(row.volume_id, foreground)
            ]
        volumes = [type(r)(**{**vars(r), "shard": "a.h5", "codec": codec}) for r, _ in rows]
        shard = ShardRow(shard="a.h5", size=finished.size, sha256=finished.sha256)
        commit(registry, {"volumes": volumes, "slices": slices, "shards": [shard]})
        data = SliceDataset(registry, min_foreground=0)
        assert len(data) == self.num_slices
        # The data set is in the order of ids; let every store be asked for the same slices.
        first = {row.volume_id: number for number, (row, _) in enumerate(rows)}
        start_of = np.empty(len(rows), dtype=np.int64)
        for place, row in enumerate(data.volumes):
            start_of[first[row.volume_id]] = place * self._depth

        def read(chosen: Chosen) -> None:
            volume, index = np.divmod(chosen, self._depth)
            for place, position in enumerate((start_of[volume] + index).tolist()):
                data.reader.read(data.place(position), self.batch[place])

        self._names = [row.dataset for row, _ in rows]
        return read

    def _libhdf5(self, codec: Codec) -> Read:
        reader = ShardReader(self._folder / f"core-mri_{codec}" / "shards")
        names = self._names

        def read(chosen: Chosen) -> None:
            for place, index in enumerate(chosen.tolist()):
                volume, position = divmod(index, self._depth)
                self.batch[place] = reader.read_slice("a.h5", names[volume], position)

        return read

    def _zarr(self, path: Path) -> Read:
        import zarr
        from zarr.codecs import BloscCodec

        array = zarr.create_array(
            path,
            shape=(self.num_slices, SIZE, SIZE),
            dtype="uint16",
            chunks=(1, SIZE, SIZE),
            shards=(256, SIZE, SIZE),
            compressors=BloscCodec(cname="lz4", shuffle="bitshuffle"),
        )
        whole = np.concatenate(self._volumes)
        for start in range(0, len(whole), 256):
            array[start : start + 256] = whole[start : start + 256]

        def read(chosen: Chosen) -> None:
            for place, index in enumerate(chosen.tolist()):
                self.batch[place] = array[index]

        return read

    def _lance(self, path: Path) -> Read:
        import lance
        import pyarrow

        def batches() -> Iterator[pyarrow.RecordBatch]:
            for volume in self._volumes:
                voxels = pyarrow.array([voxels.tobytes() for voxels in volume], pyarrow.binary())
                yield pyarrow.record_batch([voxels], names=["voxels"])

        schema = pyarrow.schema([("voxels", pyarrow.binary())])
        data = lance.write_dataset(batches(), path, schema=schema)

        def read(chosen: Chosen) -> None:
            column = data.take(chosen.tolist()).column("voxels")
            for place, voxels in enumerate(column):
                flat = np.frombuffer(voxels.as_buffer(), np.uint16)
                self.batch[place] = flat.reshape(SIZE, SIZE)

        return read

    def _litdata(self, path: Path) -> Read:
        from litdata import StreamingDataset
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(path), chunk_bytes="64MB")
        for index, voxels in enumerate(self.slices()):
            writer[index] = {"voxels": voxels}
        writer.done()
        writer.merge()
        data = StreamingDataset(str(path), shuffle=True)
        samples = itertools.chain.from_iterable(itertools.repeat(data))

        def read(chosen: Chosen) -> None:
            for place in range(len(chosen)):
                self.batch[place] = next(samples)["voxels"]

        return read

    def _webdataset(self, path: Path) -> Read:
        import io

        import webdataset

        path.mkdir()
        with tarfile.open(path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for index, voxels in enumerate(self.slices()):
                content = io.BytesIO()
                np.save(content, voxels)
                entry = tarfile.TarInfo(f"{index:09d}.npy")
                entry.size = content.tell()
                content.seek(0)
                tar.addfile(entry, content)
        data = webdataset.WebDataset(str(path / "a.tar"), shardshuffle=False).shuffle(2000)
        samples = iter(data.decode().repeat())

        def read(chosen: Chosen) -> None:
            for place in range(len(chosen)):
                self.batch[place] = next(samples)["npy"]

        return read


def bench_reading(folder: Path, *, num_volumes: int, num_slices: int, rounds: int) -> None:
    """Print slices per CPU-second of each store, its size, and what writing it took."""
    volumes = [synthetic_volume(number, num_slices) for number in range(num_volumes)]
    whole = np.concatenate(volumes)
    Stores(folder / "warm", volumes[:1])  # imports are no part of writing
    stores = Stores(folder / "stores", volumes)
    seconds: dict[str, list[float]] = {name: [] for name in stores.reads}
    for turn in range(rounds + 1):
        order = np.random.default_rng(turn).permutation(stores.num_slices)
        batches = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)
        for name, read in stores.reads.items():
            start = time.process_time()
            for chosen in batches:
                read(chosen)
            if turn:  # the first round warms caches and opens files
                seconds[name].append((time.process_time() - start) / batches.size)
            elif name.split()[0] not in ("WebDataset", "LitData"):
                assert np.array_equal(stores.batch, whole[batches[-1]]), name
    reference = statistics.median(seconds["memmap"])
    raw = whole.nbytes / 1e6
    print(
        f"reading {stores.num_slices} slices of {SIZE}x{SIZE} uint16 ({raw:.0f} MB), batches of "
        f"{BATCH}, shuffled"
    )
    print(f"  {'store':<38}{'slices/CPU-s':>14}{'of memmap':>11}{'MB':>7}{'written/CPU-s':>15}")
    for name in stores.reads:
        each = statistics.median(seconds[name])
        line = f"  {name:<38}{1 / each:>14,.0f}{reference / each:>11.3f}"
        if name in stores.write_seconds:
            written = stores.num_slices / stores.write_seconds[name]
            line += f"{stores.size(name) / 1e6:>7.0f}{written:>15,.0f}"
        print(line)
    for name in stores.missing:
        print(f"  {name:<38}{'not installed':>14}")


INGEST = """
import json, resource, sys
from pathlib import Path
from data_registry import IngestConfig, Source, ingest
registry, scans, jobs = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
source = Source(name="bench", licence="CC0-1.0", root=scans)
if __name__ == "__main__":
    config = IngestConfig(registry=registry, sources=(source,), jobs=jobs, shard_mb=64)
    report = ingest(config)
    # Not ru_maxrss for ourselves: Linux counts the process that started us into it.
    status = Path("/proc/self/status").read_text()
    own = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    peaks = [own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]
    used = sum(sum(resource.getrusage(who)[:2])
               for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"volumes": report.volumes_added, "peaks": peaks, "cpu_s": used}))
"""


def bench_memory(folder: Path, *, num_volumes: int, jobs: int) -> None:
    """Print the peak memory of an ingest of N and of 4 N volumes."""
    from core_mri.files.nifti import write_nifti
    from core_mri.volume import Volume

    print(f"\ningest with {jobs} workers: peak resident memory")
    print(f"  {'volumes':<10}{'main MB':>10}{'worker MB':>12}{'CPU-s/volume':>14}")
    for count in (num_volumes, 4 * num_volumes):
        scans = folder / f"scans{count}"
        scans.mkdir()
        for number in range(count):
            array = synthetic_volume(number, 32).transpose(2, 1, 0)
            volume = Volume(array, np.diag([0.9, 0.9, 4.0, 1.0]))
            write_nifti(volume, scans / f"patient{number:04d}.nii.gz")
        words = [sys.executable, "-c", INGEST, str(folder / f"reg{count}"), str(scans), str(jobs)]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(done.stdout)
        main_mb, worker_mb = result["peaks"]
        each = result["cpu_s"] / result["volumes"]
        print(f"  {result['volumes']:<10}{main_mb:>10.0f}{worker_mb:>12.0f}{each:>14.2f}")


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=64, help="volumes of 64 slices to read")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scans", type=int, default=24, help="N volumes to ingest, then 4 N")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench_reading(folder, num_volumes=options.volumes, num_slices=64, rounds=options.rounds)
        bench_memory(folder, num_volumes=options.scans, jobs=options.jobs)


if __name__ == "__main__":
    main()
