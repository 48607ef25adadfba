"""Features of the volumes of a registry, computed once for each encoder and volume.

``similarity/DIGEST/PART.parquet`` has a row a volume: how many slices, and either all their
features, whose sums follow from them, or, where the sums are smaller, these and the features of a
few slices. Parts are written aside and renamed; a volume is never embedded twice.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.feature_sample import LABELS, FeatureSample, slice_numbers
from core_mri.moments import Moments, check_finite
from data_registry.commits import sole_writer
from data_registry.shards import cannot_write, fsync
from data_registry.similarity.features import FeatureMaker, foreground_slices

if TYPE_CHECKING:
    import pyarrow

    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

FOLDER = "similarity"
KEPT_ROWS = 64
"""Slices of a volume whose features are kept beside its sums."""
_PART_VOLUMES, _PART_SECONDS = 256, 60.0
_GROUP = 32
"""Volumes read at a time; bounds the memory."""


@dataclass(frozen=True, eq=False)
class VolumeFeatures:
    """What is kept of one volume."""

    volume_id: str
    n: int
    """Slices in the sums."""
    places: npt.NDArray[np.int32]
    """[M], which of its slices with foreground have their features kept."""
    rows: npt.NDArray[np.float32]
    """[M, D]."""
    sums: Moments | None
    """None when all n rows are kept."""

    def moments(self) -> Moments:
        """Of all its n slices, exactly."""
        return self.sums or Moments.of(self.rows)


def volume_features(
    volume_id: str, images: Sequence[npt.NDArray[np.float32]], maker: FeatureMaker,
    spacing_mm: tuple[float, float],
) -> VolumeFeatures:  # fmt: skip
    """Features of the slices of a volume that show something.

    Raises:
        DataError: DATA-37 when a feature is not finite; it names the volume.
    """
    places = _lowest(volume_id, len(images), maker.most_slices or len(images))
    rows = maker([images[i] for i in places], spacing_mm)
    try:
        check_finite(rows)
    except DataError as error:
        raise DataError(error.code, f"volume {volume_id}: {error.message}", fix=error.fix) from None
    if len(rows) <= maker.width:
        return VolumeFeatures(volume_id, len(rows), places, rows, None)
    kept = np.searchsorted(places, _lowest(volume_id, len(images), KEPT_ROWS))
    return VolumeFeatures(volume_id, len(rows), places[kept], rows[kept], Moments.of(rows))


def _lowest(volume_id: str, count: int, most: int) -> npt.NDArray[np.int32]:
    """The slices of the smallest numbers, ascending by place."""
    places = np.arange(count)
    numbers = slice_numbers([volume_id], np.zeros(count, np.int64), places)
    return np.sort(np.argsort(numbers)[:most]).astype(np.int32)


class FeatureStore:
    """The features of one maker in a registry.

    Args:
        registry: The registry.
        digest: Of the maker.
    """

    def __init__(self, registry: Registry, digest: str) -> None:
        self.registry = registry
        self.digest = digest
        self.folder = registry.path / FOLDER / digest

    def parts(self) -> list[Path]:
        """Its files."""
        return sorted(self.folder.glob("[!.]*.parquet"))

    def volumes(self) -> set[str]:
        """Ids of the volumes that it has."""
        return {name for part in self.parts() for name in _column(part, "volume_id")}

    def compute(
        self,
        rows: Sequence[VolumeRow],
        maker: FeatureMaker,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Add the volumes that are not there; interrupted, the next call goes on.

        Returns:
            The number of volumes added.

        Raises:
            DataError: DATA-07 when the disk is full, DATA-08 when another process is writing or a
                shard is damaged, DATA-37 when a feature is not finite.
        """
        known = self.volumes()
        missing = [row for row in rows if row.volume_id not in known]
        waiting: list[VolumeFeatures] = []
        written = time.monotonic()
        for done, row in enumerate(missing):
            images = foreground_slices(self.registry, row)
            waiting.append(volume_features(row.volume_id, images, maker, row.spacing_mm[1:]))  # type: ignore[arg-type]
            late = time.monotonic() - written >= _PART_SECONDS
            if late or len(waiting) == _PART_VOLUMES or done + 1 == len(missing):
                self.add(waiting)
                waiting, written = [], time.monotonic()
            if on_progress is not None:
                on_progress(done + 1, len(missing))
        return len(missing)

    def add(self, found: Sequence[VolumeFeatures]) -> None:
        """Write a part of volumes that are still in the registry.

        Raises:
            DataError: DATA-07 when the disk is full, DATA-08 when another process is writing.
        """
        with sole_writer(self.registry):
            query = "SELECT volume_id FROM volumes WHERE list_contains(?, volume_id)"
            ids = [one.volume_id for one in found]
            wanted = {name for (name,) in self.registry.rows(query, [ids])} - self.volumes()
            kept = [one for one in found if one.volume_id in wanted]
            if kept:
                self.write(kept)

    def write(self, found: Sequence[VolumeFeatures]) -> None:
        """Write a part; `add` is what looks at the registry first.

        Raises:
            DataError: DATA-07 when the disk is full.
        """
        _write(_table(found), self.folder / f"{uuid.uuid4().hex[:16]}.parquet")

    def read(self, volume_ids: Collection[str]) -> Iterator[VolumeFeatures]:
        """What it has of these volumes, some at a time in memory.

        Raises:
            DataError: DATA-08 when a part is damaged.
        """
        wanted = set(volume_ids)
        for part in self.parts():
            if not wanted.isdisjoint(_column(part, "volume_id")):
                yield from (one for one in _read(part) if one.volume_id in wanted)

    def gather(self, rows: Sequence[VolumeRow], size: int) -> tuple[Moments, FeatureSample]:
        """Moments of all slices of these volumes, and a sample of at most `size` of them.

        Raises:
            DataError: DATA-08 when a part is damaged, DATA-09 when it has none of the volumes.
        """
        by_id = {row.volume_id: row for row in rows}
        limit, population = self._limit(by_id, size)
        moments: Moments | None = None
        picked: list[tuple[int, str, int, npt.NDArray[np.float32]]] = []
        for block in _blocks(self.read(by_id)):
            own = _sum(block)
            moments = own if moments is None else moments + own
            for one in block:
                numbers = _numbers(one.volume_id, one.places)
                chosen = np.flatnonzero(numbers <= limit)
                picked += [
                    (int(numbers[i]), one.volume_id, int(one.places[i]), one.rows[i])
                    for i in chosen
                ]
        if moments is None:
            raise DataError(
                "DATA-09",
                f"{self.registry.path} has features {self.digest} of none of {len(by_id)} volumes.",
            )
        picked.sort(key=lambda item: item[0])
        return moments, _sample(self.digest, picked[:size], by_id, population)

    def _limit(self, wanted: Mapping[str, VolumeRow], size: int) -> tuple[np.uint64, int]:
        """The `size`-th smallest number of a slice, and the number of slices."""
        lowest = np.zeros(0, np.uint64)
        population = 0
        for part in self.parts():
            columns = zip(*_columns(part, "volume_id", "n", "places"), strict=True)
            own = [(name, n, np.array(places)) for name, n, places in columns if name in wanted]
            population += sum(n for _, n, _ in own)
            numbers = [_numbers(name, places) for name, _, places in own]
            lowest = np.sort(np.concatenate([lowest, *numbers]))[:size]
        return (lowest[-1] if len(lowest) else np.uint64(0)), population


def forget(registry: Registry, volume_ids: Collection[str]) -> None:
    """Take volumes out of all stores; done again it changes nothing. The caller holds the lock.

    Raises:
        DataError: DATA-07 when a part cannot be written, DATA-08 when one is damaged.
    """
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    gone = set(volume_ids)
    for part in sorted((registry.path / FOLDER).glob("*/[!.]*.parquet")):
        if gone.isdisjoint(_column(part, "volume_id")):
            continue
        table = pyarrow.parquet.read_table(part)
        among = pyarrow.compute.is_in(table["volume_id"], pyarrow.array(sorted(gone)))
        left = table.filter(pyarrow.compute.invert(among))
        if len(left):
            _write(left, part)
        else:
            part.unlink()


def _sample(
    digest: str,
    picked: Sequence[tuple[int, str, int, npt.NDArray[np.float32]]],
    by_id: Mapping[str, VolumeRow],
    population: int,
) -> FeatureSample:
    volumes = [by_id[name] for _, name, _, _ in picked]
    _, patients = np.unique([row.subject_id for row in volumes], return_inverse=True)
    return FeatureSample(
        features=digest,
        rows=np.stack([row for _, _, _, row in picked]),
        numbers=np.array([number for number, _, _, _ in picked], np.uint64),
        patients=patients.astype(np.int64),
        labels=labels_of(volumes),
        population=population,
        places=[(name, place) for _, name, place, _ in picked],
    )


def labels_of(volumes: Sequence[VolumeRow]) -> dict[str, npt.NDArray[np.str_]]:
    """`feature_sample.LABELS` of slices, whose volumes are given."""
    return {
        name: np.array(
            [
                field_strength(row) if name == "field_strength" else getattr(row, name)
                for row in volumes
            ]
        )
        for name in LABELS
    }


def field_strength(row: VolumeRow) -> str:
    """Such as ``3.0 T``, or ``unknown``."""
    return "unknown" if row.field_strength_t is None else f"{row.field_strength_t:.1f} T"


def _numbers(volume_id: str, places: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    return slice_numbers([volume_id], np.zeros(len(places), np.int64), places)


def _sum(block: Sequence[VolumeFeatures]) -> Moments:
    """Rows of many volumes are multiplied at once: a product of large matrices is far faster."""
    whole = [one.rows for one in block if one.sums is None]
    parts = [one.sums for one in block if one.sums is not None]
    if whole:
        parts.append(Moments.of(np.concatenate(whole)))
    return sum(parts[1:], parts[0])


def _blocks(items: Iterator[VolumeFeatures]) -> Iterator[list[VolumeFeatures]]:
    block: list[VolumeFeatures] = []
    for item in items:
        block.append(item)
        if len(block) == _GROUP:
            yield block
            block = []
    if block:
        yield block


def _table(found: Sequence[VolumeFeatures]) -> pyarrow.Table:
    import pyarrow

    def outer(one: VolumeFeatures) -> bytes | None:
        if one.sums is None:
            return None
        return one.sums.outer[np.triu_indices(len(one.sums.total))].tobytes()

    return pyarrow.table(
        {
            "volume_id": [one.volume_id for one in found],
            "n": pyarrow.array([one.n for one in found], pyarrow.int32()),
            "places": pyarrow.array([one.places for one in found], pyarrow.list_(pyarrow.int32())),
            "rows": pyarrow.array([one.rows.tobytes() for one in found], pyarrow.large_binary()),
            "total": pyarrow.array(
                [one.sums.total.tobytes() if one.sums else None for one in found],
                pyarrow.binary(),
            ),
            "outer": pyarrow.array([outer(one) for one in found], pyarrow.large_binary()),
        }
    )


def _write(table: pyarrow.Table, path: Path) -> None:
    import pyarrow.parquet

    aside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(
            table, aside, compression="none", row_group_size=_GROUP, use_dictionary=["volume_id"]
        )
        fsync(aside)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise cannot_write(error, f"features {path.parent.name}") from error


def _read(part: Path) -> Iterator[VolumeFeatures]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(part) as file:
            for batch in file.iter_batches(batch_size=_GROUP):
                yield from map(_unpack, batch.to_pylist())
    except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise _damaged(part, error) from error


def _unpack(row: Mapping[str, Any]) -> VolumeFeatures:
    places = np.array(row["places"], np.int32)
    rows = np.frombuffer(row["rows"], np.float32).reshape(len(places), -1)
    sums = None
    if row["total"] is not None:
        width = rows.shape[1]
        outer = np.zeros((width, width))
        upper = np.triu_indices(width)
        outer[upper] = np.frombuffer(row["outer"], np.float64)
        outer.T[upper] = outer[upper]
        sums = Moments(row["n"], np.frombuffer(row["total"], np.float64), outer)
    return VolumeFeatures(row["volume_id"], row["n"], places, rows, sums)


def _column(part: Path, name: str) -> list[str]:
    return _columns(part, name)[0]


def _columns(part: Path, *names: str) -> list[list[Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(part, columns=list(names))
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise _damaged(part, error) from error
    return [table[name].to_pylist() for name in names]


def _damaged(part: Path, error: Exception) -> DataError:
    return DataError(
        "DATA-08",
        f"stored features {part} are damaged: {str(error).partition(chr(10))[0]}.",
        fix="Delete the file; the same command makes them again.",
    )
