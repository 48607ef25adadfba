"""How fast a catalogue of ten million slices answers, and what a thousand commits cost.

    python tests/benchmarks/bench_catalogue.py

All rows are synthetic; no shard exists. Each time is the best of three, wall and CPU seconds of
this process with two threads of DuckDB; the peak is the resident memory up to that line.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from data_registry import Registry, SliceDataset
from data_registry.cohorts import freeze, preview
from data_registry.commits import sole_writer
from data_registry.compaction import merge_commits
from data_registry.schema import FileRow, SliceRow, SplitRow, VolumeRow, arrow_schema
from data_registry.views import commit_folders

SLICES = 50
REGIONS = ("breast", "brain", "prostate", "knee", "heart", "abdomen", "spine", "hip", "unknown")
SEQUENCES = ("T1", "T2", "FLAIR", "DWI", "PD", "T1 contrast", "unknown")
PLANES = ("axial", "coronal", "sagittal")
FACTS = '{"EchoTime": 101.0, "FlipAngle": 90.0, "Manufacturer": "SIEMENS", "Rows": 320}'


def ids(prefix: str, numbers: np.ndarray) -> list[str]:
    """Names as long as those of a registry."""
    mixed = (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).tolist()
    return [f"{prefix}{number:016x}{number % 9973:010d}" for number in mixed]


def columns_of(row: type, given: dict[str, object], length: int, number: int) -> pyarrow.Table:
    """A table of the schema of `row`; what is not given is one plausible value."""
    plain = {"string": "none", "int64": 1, "double": 1.0, "bool": False}
    columns = {}
    for field in arrow_schema(row):
        if field.name in given:
            columns[field.name] = pyarrow.array(given[field.name], field.type)
        elif pyarrow.types.is_list(field.type):
            size = 16 if field.name == "affine" else 3
            columns[field.name] = pyarrow.array([[1.0] * size] * length, field.type)
        else:
            value = number if field.name == "commit" else plain[str(field.type)]
            columns[field.name] = pyarrow.array([value] * length, field.type)
    return pyarrow.table(columns, schema=arrow_schema(row))


def write_commit(registry: Registry, number: int, start: int, count: int) -> None:
    """One commit of `count` volumes from volume `start`."""
    rng = np.random.default_rng(number)
    numbers = np.arange(start, start + count)
    volume_ids = ids("V", numbers)
    subjects = ids("P", numbers // 8)
    splits = np.array(["train", "val", "test"])[(numbers // 8) % 10 // 7 % 3]
    volumes = {
        "volume_id": volume_ids,
        "subject_id": subjects,
        "study_id": ids("2.25.", numbers // 5),
        "source": [f"source{n % 12}" for n in numbers.tolist()],
        "role": ["image"] * count,
        "num_slices": [SLICES] * count,
        "shard": [f"{n // 500:016x}.h5" for n in numbers.tolist()],
        "dataset": volume_ids,
        "codec": ["bitshuffle-lz4"] * count,
        "dtype": ["uint16"] * count,
        "payload": ["uint16"] * count,
        "rows": [320] * count,
        "columns": [320] * count,
        "region": rng.choice(REGIONS, count).tolist(),
        "sequence": rng.choice(SEQUENCES, count).tolist(),
        "plane": rng.choice(PLANES, count).tolist(),
        "split": splits.tolist(),
        "pixel_hash": ids("", numbers),
        "facts": [FACTS] * count,
    }
    slices = {
        "volume_id": np.repeat(volume_ids, SLICES),
        "index": np.tile(np.arange(SLICES), count),
        "foreground": rng.random(count * SLICES),
        "byte_start": np.arange(count * SLICES) * 98_304,
        "num_bytes": rng.integers(60_000, 100_000, count * SLICES),
        "checksum": rng.integers(0, 2**32, count * SLICES),
    }
    files = {"file_id": ids("F", numbers), "unit_id": ids("U", numbers), "code": [""] * count}
    first = numbers % 8 == 0
    subject_rows = {"subject_id": np.array(subjects)[first], "split": splits[first]}
    folder = registry.path / "commits" / f"{number:08d}"
    folder.mkdir(parents=True)
    for name, row, given, length in (
        ("volumes", VolumeRow, volumes, count),
        ("slices", SliceRow, slices, count * SLICES),
        ("files", FileRow, files, count),
        ("splits", SplitRow, subject_rows, int(first.sum())),
    ):
        table = columns_of(row, given, length, number)
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet", compression="zstd")


def make(path: Path, num_volumes: int, num_commits: int) -> Registry:
    """A catalogue without shards."""
    registry = Registry.create(path)
    each = num_volumes // num_commits
    for number in range(num_commits):
        write_commit(registry, number + 1, number * each, each)
    return registry


def peak_mb() -> float:
    """Highest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def timed(name: str, action: Callable[[], object], times: int = 3) -> None:
    """Print the best of some runs."""
    best = (1e9, 1e9)
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        found = action()
        best = min(best, (time.perf_counter() - wall, time.process_time() - cpu))
    print(f"  {name:<46}{best[0]:>8.3f}{best[1]:>8.3f}{peak_mb():>8.0f}   {found}")


def measure(path: Path) -> None:
    """Print what the usual questions cost."""
    registry = Registry.open(path)
    cohort = "region = 'brain' AND sequence = 'T1' AND plane = 'axial' AND split = 'train'"
    print(f"  {'':<46}{'wall s':>8}{'CPU s':>8}{'MB':>8}")
    timed("opening, and the first answer", lambda: len(Registry.open(path).sql("SELECT 1")))
    timed("cohort by four conditions", lambda: preview(registry, cohort).num_volumes)
    joined = (
        'SELECT s.volume_id, s."index", s.byte_start FROM slices s JOIN volumes v '
        f"ON s.volume_id = v.volume_id WHERE s.foreground > 0.5 AND {cohort}"
    )
    timed("its slices with half foreground", lambda: registry.sql(joined).num_rows)
    timed("stats", lambda: registry.stats()["slices"])
    leak = (
        "SELECT count(*) AS n FROM (SELECT subject_id FROM volumes GROUP BY subject_id "
        "HAVING count(DISTINCT split) > 1)"
    )
    timed("patients in two splits", lambda: registry.sql(leak).to_pylist()[0]["n"])
    one = registry.sql("SELECT volume_id FROM volumes LIMIT 1").to_pylist()[0]["volume_id"]
    timed("one volume by id", lambda: registry.volume(one).num_slices)
    timed("a cohort frozen", lambda: freeze(registry, f"c{time.time_ns()}", cohort).num_volumes)
    whole = ("train", "val", "test")
    timed("SliceDataset of one cohort", lambda: len(SliceDataset(registry, where=cohort)))
    timed("SliceDataset of everything", lambda: len(SliceDataset(registry, split=whole)), times=1)


def main() -> None:
    """Measure at full size, then with many commits before and after merging."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--volumes", type=int, default=200_000, help=f"of {SLICES} slices each")
    parser.add_argument("--commits", type=int, default=50)
    parser.add_argument("--many", type=int, default=1000, help="commits of 10 volumes each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        make(folder / "large", options.volumes, options.commits)
        size = sum(p.stat().st_size for p in (folder / "large").rglob("*.parquet")) / 1e6
        print(
            f"{options.volumes:,} volumes, {options.volumes * SLICES:,} slices in "
            f"{options.commits} commits: {size:.0f} MB of Parquet, "
            f"written in {time.perf_counter() - start:.0f} s"
        )
        measure(folder / "large")
        registry = make(folder / "many", options.many * 10, options.many)
        print(f"\n{options.many} commits of 10 volumes each")
        measure(folder / "many")
        with sole_writer(registry):
            start = time.perf_counter()
            merge_commits(registry)
            print(f"  merged into {len(commit_folders(registry.path))} folders in "
                  f"{time.perf_counter() - start:.2f} s")  # fmt: skip
        measure(folder / "many")


if __name__ == "__main__":
    main()
