"""Embeddings on disk: one ``.npz`` a volume, or one Parquet table of vectors made of parts.

``.npz`` (no pickles): ``cls [S, D]`` float32, a vector a slice; ``patches [S, h, w, D]`` float32,
on the padded square of each slice; ``affine [4, 4]``, index (slice, row, column) to RAS+ mm;
``patch_affine [4, 4]``, the same of patch centers; ``shape [3]``, slices, rows, columns;
``volume``, its id; ``weights``, hash of the tensors that made it.

Parquet, a row a slice (or a volume: the mean over its slices): ``volume``, ``slice`` (0-based, or
null), ``position_mm [3]``, the center in RAS+ mm, ``affine [16]`` row by row, ``rows``,
``columns``, ``embedding [D]`` float32.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from core_mri.runs import writing

if TYPE_CHECKING:
    import pyarrow

    from core_mri.predictor import Embedding

Level = Literal["slice", "volume"]
PART_BYTES, PART_SECONDS = 64 << 20, 60.0
"""Rows wait in memory up to this size and time before they become a part."""


def save_npz(embedding: Embedding, path: Path, *, volume: str, weights: str) -> None:
    """Write one volume; readers see all of it or none.

    Args:
        embedding: What to write; without patch tokens there is no ``patches``.
        path: Where; folders are made.
        volume: Id of the volume.
        weights: Hash of the weights.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    arrays = embedding._asdict() | {"volume": np.array(volume), "weights": np.array(weights)}
    if not embedding.patches.size:
        del arrays["patches"]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.partial")
        with aside.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        aside.replace(path)


def rows_of(embedding: Embedding, volume: str, level: Level) -> pyarrow.Table:
    """The rows of one volume."""
    import pyarrow

    slices, rows, columns = embedding.shape
    indices = np.arange(slices) if level == "slice" else np.array([(slices - 1) / 2])
    vectors = embedding.cls if level == "slice" else embedding.cls.mean(0, keepdims=True)
    centers = np.stack(
        [indices, np.full(len(indices), (rows - 1) / 2), np.full(len(indices), (columns - 1) / 2)],
        1,
    )
    positions = centers @ embedding.affine[:3, :3].T + embedding.affine[:3, 3]
    count = len(indices)
    numbers = indices.astype(np.int32).tolist() if level == "slice" else [None] * count

    def lists(values: np.ndarray) -> pyarrow.Array:
        return pyarrow.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])

    return pyarrow.table(
        {
            "volume": [volume] * count,
            "slice": pyarrow.array(numbers, pyarrow.int32()),
            "position_mm": lists(positions),
            "affine": lists(np.tile(embedding.affine.reshape(1, 16), (count, 1))),
            "rows": pyarrow.array([rows] * count, pyarrow.int32()),
            "columns": pyarrow.array([columns] * count, pyarrow.int32()),
            "embedding": lists(vectors.astype(np.float32, copy=False)),
        }
    )


class TableParts:
    """Rows of a Parquet table, kept as parts in a folder until all of them are there.

    Args:
        folder: Exists; holds the parts of an earlier start, too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: list[pyarrow.Table] = []
        self._written = time.monotonic()

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def volumes(self) -> set[str]:
        """Ids of the volumes in finished parts."""
        import pyarrow.parquet

        return {
            volume
            for part in self._parts()
            for volume in pyarrow.parquet.read_table(part, columns=["volume"])[0].to_pylist()
        }

    def add(self, rows: pyarrow.Table) -> None:
        """Keep the rows of a volume; a full part is written.

        Raises:
            DataError: DATA-07 when it cannot be written.
        """
        self._waiting.append(rows)
        late = time.monotonic() - self._written >= PART_SECONDS
        if late or sum(table.nbytes for table in self._waiting) >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a part.

        Raises:
            DataError: DATA-07 when it cannot be written.
        """
        import pyarrow.parquet

        if self._waiting:
            path = self.folder / f"part-{len(self._parts()):06d}.parquet"
            aside = path.with_name(f".{path.name}.partial")
            with writing(path):
                pyarrow.parquet.write_table(pyarrow.concat_tables(self._waiting), aside)
                aside.replace(path)
            self._waiting = []
        self._written = time.monotonic()

    def join(self, path: Path, facts: dict[str, str]) -> None:
        """Write all parts as one table, a part at a time in memory.

        Args:
            path: The table; it appears when it is complete.
            facts: Kept in the metadata of its schema.

        Raises:
            DataError: DATA-07 when it cannot be written.
        """
        import pyarrow.parquet

        self.flush()
        parts = self._parts()
        schema = pyarrow.parquet.read_schema(parts[0]).with_metadata(facts)
        aside = self.folder / ".joined.partial"
        with writing(path):
            with pyarrow.parquet.ParquetWriter(aside, schema, compression="zstd") as writer:
                for table in map(pyarrow.parquet.read_table, parts):
                    writer.write_table(table.replace_schema_metadata(facts))
            aside.replace(path)
