"""How fast slices are read in random order, beside a memory map; how much memory ingest takes.

    python tests/benchmarks/bench_shards.py

Reading: shuffled batches of 64 slices of 256x256 uint16, copied into one array, page cache warm,
one process. All stores take turns in each round; the number is slices per CPU-second (median of the
rounds), and the ratio to the memory map of the same run is what other machines can compare.
Memory: peak resident size of the ingesting process and of its workers, for N and 4 N volumes.
The slices are synthetic: a smooth object on Rician noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_registry.schema import Codec
from data_registry.shards import ShardReader, ShardWriter

SIZE = 256
BATCH = 64
CODECS: tuple[Codec, ...] = ("none", "bitshuffle-lz4")

Batch = npt.NDArray[np.uint16]


def synthetic_volume(seed: int, num_slices: int, size: int = SIZE) -> Batch:
    """A smooth bright object with Rician noise, ``[slices, size, size]``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    brightness = rng.uniform(0.7, 1.3, (num_slices, 1, 1))
    signal = 900 * brightness * np.exp(-(((x / 0.28) ** 2 + (y / 0.34) ** 2) ** 4))
    real, imaginary = rng.normal(0, 18, (2, num_slices, size, size))
    return np.hypot(signal + real, imaginary).astype(np.uint16)


def bench_reading(folder: Path, *, num_volumes: int, num_slices: int, rounds: int) -> None:
    """Print slices per CPU-second of each store, and its size."""
    writers = {c: ShardWriter(folder, f"{c}.h5", c) for c in CODECS}
    plain = np.lib.format.open_memmap(
        folder / "plain.npy",
        mode="w+",
        dtype=np.uint16,
        shape=(num_volumes * num_slices, SIZE, SIZE),
    )
    for number in range(num_volumes):
        volume = synthetic_volume(number, num_slices)
        plain[number * num_slices : (number + 1) * num_slices] = volume
        for writer in writers.values():
            writer.add(f"v{number}", volume, np.eye(4))
    for writer in writers.values():
        writer.finish()
    plain.flush()

    memmap = np.load(folder / "plain.npy", mmap_mode="r")
    reader = ShardReader(folder)
    batch = np.empty((BATCH, SIZE, SIZE), np.uint16)

    def from_memmap(chosen: npt.NDArray[np.int64]) -> None:
        for place, index in enumerate(chosen):
            batch[place] = memmap[index]

    def from_shard(name: str) -> Callable[[npt.NDArray[np.int64]], None]:
        def read(chosen: npt.NDArray[np.int64]) -> None:
            for place, index in enumerate(chosen):
                volume, position = divmod(int(index), num_slices)
                batch[place] = reader.read_slice(name, f"v{volume}", position)

        return read

    stores = {"memmap": from_memmap, **{c: from_shard(f"{c}.h5") for c in CODECS}}
    seconds: dict[str, list[float]] = {name: [] for name in stores}
    for turn in range(rounds + 1):
        order = np.random.default_rng(turn).permutation(len(memmap))
        batches = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)
        for name, read in stores.items():
            start = time.process_time()
            for chosen in batches:
                read(chosen)
            if turn:  # the first round warms caches and opens files
                seconds[name].append((time.process_time() - start) / batches.size)
    reference = statistics.median(seconds["memmap"])
    print(f"reading {len(memmap)} slices of {SIZE}x{SIZE} uint16, batches of {BATCH}, shuffled")
    print(f"  {'store':<16}{'slices/CPU-s':>14}{'of memmap':>12}{'MB':>8}")
    for name in stores:
        each = statistics.median(seconds[name])
        file = folder / ("plain.npy" if name == "memmap" else f"{name}.h5")
        megabytes = file.stat().st_size / 1e6
        print(f"  {name:<16}{1 / each:>14,.0f}{reference / each:>12.2f}{megabytes:>8.0f}")


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
