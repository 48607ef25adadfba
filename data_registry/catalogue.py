"""`Registry`: the folder that knows which scans exist (DuckDB) and holds their voxels (shards)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core_mri.errors import CODES, ConfigError, DataError
from core_mri.volume import Volume
from data_registry.payloads import unpack
from data_registry.schema import PAIR_NAME, SCHEMA_VERSION, VolumeRow, from_table
from data_registry.shards import PARTIAL, Array, ShardReader, cannot_write, fsync
from data_registry.splits import DEFAULT_FRACTIONS, Fractions
from data_registry.views import Views

if TYPE_CHECKING:
    import pyarrow

    from core_mri.files.kspace import KSpace

REGISTRY_FILE = "registry.json"
_FORMAT = "core-mri registry"


@dataclass(frozen=True, kw_only=True)
class RegistryInfo:
    """Content of `registry.json`."""

    fractions: Fractions = DEFAULT_FRACTIONS
    """Parts of the subjects that go to train, val and test."""
    key_check: str = ""
    """Keyed id of a fixed word: tells a wrong key before it splits one patient into two."""


class Registry:
    """A registry folder, open for reading; `data_registry.ingest` is what writes to it.

    Cheap to make and to pickle: each process opens tables and shards for itself, on first use.

    Args:
        path: The folder; use `Registry.open` or `Registry.create`, which check it.
        info: Content of its `registry.json`.
    """

    def __init__(self, path: Path, info: RegistryInfo) -> None:
        self.path = path
        self.info = info
        self.shards = ShardReader(path / "shards")
        self._views = Views(path)

    @classmethod
    def open(cls, path: Path | str) -> Registry:
        """Open an existing registry; one of an older schema is migrated: its shards are read once.

        Raises:
            DataError: DATA-08 when the folder is no registry, damaged, or of a newer schema; and
                what `data_registry.migrations.migrate` raises.
        """
        path = Path(path)
        try:
            text = (path / REGISTRY_FILE).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                "DATA-08",
                f"{path} is no registry: it has no {REGISTRY_FILE}.",
                fix=f"Make one with `core-mri data ingest PATH... --registry {path} "
                "--source NAME --licence SPDX`.",
            ) from None
        try:
            content = json.loads(text)
            known = content["format"] == _FORMAT
            schema = int(content["schema"])
            train, val, test = (float(content["fractions"][s]) for s in ("train", "val", "test"))
            info = RegistryInfo(fractions=(train, val, test), key_check=content["key_check"])
        except (ValueError, KeyError, TypeError):
            known, schema, info = False, 0, RegistryInfo()
        if not known:
            raise DataError("DATA-08", f"{path / REGISTRY_FILE} is damaged or of another program.")
        if schema > SCHEMA_VERSION:
            raise DataError(
                "DATA-08",
                f"{path} has schema {schema}, this core-mri reads up to {SCHEMA_VERSION}.",
                fix="Install a newer core-mri.",
            )
        registry = cls(path, info)
        if schema < SCHEMA_VERSION:
            from data_registry.migrations import migrate

            migrate(registry, schema)
        return registry

    @classmethod
    def create(cls, path: Path | str, *, fractions: Fractions = DEFAULT_FRACTIONS) -> Registry:
        """Make an empty registry, or open the one that is there.

        Raises:
            ConfigError: CONFIG-03 when the folder holds something else.
            DataError: DATA-07 when the folder cannot be written, DATA-08 as `open`.
        """
        path = Path(path)
        if (path / REGISTRY_FILE).is_file():
            return cls.open(path)
        try:
            if path.exists() and (not path.is_dir() or _holds_data(path)):
                raise ConfigError(
                    "CONFIG-03",
                    f"{path} is not empty and is no registry.",
                    fix="Give --registry a new or empty folder.",
                )
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(error, f"registry {path}") from error
        registry = cls(path, RegistryInfo(fractions=fractions))
        registry.save_info()
        return registry

    def save_info(self) -> None:
        """Write `registry.json` aside and rename it.

        Raises:
            DataError: DATA-07 when it cannot be written.
        """
        content = {
            "format": _FORMAT,
            "schema": SCHEMA_VERSION,
            "fractions": dict(zip(("train", "val", "test"), self.info.fractions, strict=True)),
            "key_check": self.info.key_check,
        }
        aside = self.path / f"{PARTIAL}{REGISTRY_FILE}"
        try:
            aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            fsync(aside)
            aside.rename(self.path / REGISTRY_FILE)
        except OSError as error:
            raise cannot_write(error, f"registry {self.path}") from error

    def volumes(
        self, where: str = "", parameters: Sequence[object] = (), *, limit: int = 0
    ) -> list[VolumeRow]:
        """Rows of the catalogue, in the order of their ids (the same on every machine).

        Args:
            where: SQL condition on the columns of `VolumeRow`, such as ``"region = ?"``.
            parameters: Values of the question marks.
            limit: Rows at most; 0 for all.
        """
        query = f"SELECT * FROM volumes {f'WHERE {where}' if where else ''} ORDER BY volume_id"
        query += f" LIMIT {limit}" if limit else ""
        return from_table(VolumeRow, self.sql(query, parameters))

    def sql(self, query: str, parameters: Sequence[object] = ()) -> pyarrow.Table:
        """Answer of one SELECT over the views of `data_registry.views`; it can change nothing.

        Raises:
            DataError: DATA-08 when a part of the catalogue is missing or damaged.
            ConfigError: CONFIG-01 when the query is wrong, or does more than select.
        """
        return self._views.table(query, parameters)

    def rows(self, query: str, parameters: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        """Answer of a query row by row, for answers that need not fit into memory.

        Raises:
            DataError: As `sql`.
            ConfigError: As `sql`.
        """
        return self._views.rows(query, parameters)

    def volume(self, volume_id: str) -> VolumeRow:
        """The row of one volume.

        Raises:
            DataError: DATA-08 when there is none.
        """
        rows = self.volumes("volume_id = ?", [volume_id])
        if not rows:
            raise DataError("DATA-08", f"{self.path} has no volume {volume_id}.")
        return rows[0]

    def read(self, volume: VolumeRow | str) -> Volume:
        """Voxels on the stored grid, ``[slice, row, column]`` of the volume's plane.

        Raises:
            ConfigError: CONFIG-05 for raw data, which `read_kspace` reads.
            DataError: DATA-08 when there is no such volume or its shard is missing or damaged.
        """
        row = self.volume(volume) if isinstance(volume, str) else volume
        if row.role == "kspace":
            raise ConfigError(
                "CONFIG-05",
                f"volume {row.volume_id} is raw data, not an image.",
                fix="Use Registry.read_kspace.",
            )
        return Volume(
            array=unpack(self.shards.read(row.shard, row.dataset), row.dtype, row.scale),
            affine=np.array(row.affine).reshape(4, 4),
            kind=row.role,
            facts=json.loads(row.facts, object_hook=_tuples),
        )

    def read_slice(self, volume: VolumeRow | str, index: int) -> Array:
        """One slice ``[H, W]`` of voxels; nothing but its chunk is read.

        Raises:
            DataError: As `read`.
        """
        row = self.volume(volume) if isinstance(volume, str) else volume
        stored = self.shards.read_slice(row.shard, row.dataset, index)
        return unpack(stored, row.dtype, row.scale)

    def read_kspace(self, volume: VolumeRow | str) -> KSpace:
        """Raw data, to be read slice by slice.

        Raises:
            ConfigError: CONFIG-05 when the volume is no raw data.
            DataError: As `read`.
        """
        from data_registry.raw_data import open_kspace

        row = self.volume(volume) if isinstance(volume, str) else volume
        if row.role != "kspace":
            raise ConfigError(
                "CONFIG-05",
                f"volume {row.volume_id} is an {row.role}, not raw data.",
                fix="Use Registry.read.",
            )
        return open_kspace(self.shards, row)

    def labels_of(self, volume: VolumeRow) -> list[VolumeRow]:
        """Label maps of the same subject whose voxels are those of `volume`.

        Single pictures, which state no place in the patient, must also have the name of the image.

        Grids are compared by their corners (0.01 mm), because the same geometry read from DICOM and
        from NIfTI differs in its last digits.
        """
        return self._partners(volume, "label")

    def partial_labels_of(self, volume: VolumeRow) -> list[VolumeRow]:
        """Label maps of the same subject that hold some of the slices of `volume`.

        DICOM segmentations leave out the slices where nothing is marked; `first_slice` tells where
        the others belong.
        """
        others = self.volumes(
            "role = 'label' AND subject_id = ? AND num_slices < ? AND rows = ? AND columns = ?",
            [volume.subject_id, volume.num_slices, volume.rows, volume.columns],
        )
        return [
            row
            for row in others
            if _pair_name(row) == _pair_name(volume) and first_slice(row, volume) is not None
        ]

    def images_of(self, label: VolumeRow) -> list[VolumeRow]:
        """The other way round: images of the same subject whose voxels a label map describes."""
        return self._partners(label, "image")

    def _partners(self, volume: VolumeRow, role: str) -> list[VolumeRow]:
        others = self.volumes(
            "role = ? AND subject_id = ? AND num_slices = ? AND rows = ? AND columns = ?",
            [role, volume.subject_id, volume.num_slices, volume.rows, volume.columns],
        )
        own = _corners(volume)
        return [
            row
            for row in others
            if np.abs(_corners(row) - own).max() <= 1e-2 and _pair_name(row) == _pair_name(volume)
        ]

    def stats(self) -> dict[str, Any]:
        """Counts of volumes, slices, subjects; by region, sequence, plane, source and split.

        All but `labels` and `kspace` (their numbers) count images; `synthetic` are those of them
        that no scanner made. `quarantined` maps ``"CODE
        meaning"`` to the number of series and single files.
        """
        total = self.sql(
            "SELECT count(*) AS volumes, coalesce(sum(num_slices), 0)::BIGINT AS slices, "
            "count(DISTINCT subject_id) AS subjects FROM volumes WHERE role = 'image'"
        ).to_pylist()[0]
        groups = {
            f"by_{name}": self._counts(
                f"SELECT {name}, count(*) AS n FROM volumes WHERE role = 'image' "
                f"GROUP BY ALL ORDER BY n DESC, {name}"
            )
            for name in ("region", "sequence", "plane", "source", "split")
        }
        quarantined = self._counts(
            "SELECT code, count(DISTINCT unit_id) AS n FROM quarantine GROUP BY ALL ORDER BY code"
        )
        ((synthetic,),) = self.rows(
            "SELECT count(*) FROM volumes WHERE role = 'image' AND synthetic"
        )
        roles = self._counts("SELECT role, count(*) AS n FROM volumes GROUP BY ALL")
        return {
            **total,
            "synthetic": synthetic,
            "labels": roles.get("label", 0),
            "kspace": roles.get("kspace", 0),
            **groups,
            "quarantined": {reason_of(code): n for code, n in quarantined.items()},
        }

    def _counts(self, query: str) -> dict[str, int]:
        names, numbers = (column.to_pylist() for column in self.sql(query).columns)
        return dict(zip(names, numbers, strict=True))

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "info": self.info}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["path"], state["info"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"Registry({str(self.path)!r})"


def _holds_data(folder: Path) -> bool:
    """Whether a folder holds more than what a killed first ingest leaves."""
    return any(not path.name.startswith(PARTIAL) for path in folder.iterdir())


def reason_of(code: str) -> str:
    """A quarantine reason for people: the code and what it stands for; never text of a file."""
    return f"{code} {CODES.get(code, 'unknown reason')}"


def first_slice(part: VolumeRow, whole: VolumeRow) -> int | None:
    """The slice of `whole` that the first of `part` is; None when its voxels are no others.

    ``inv(A_whole) A_part`` is then a move by whole slices, up to a hundredth of a voxel.
    """
    to_whole, of_part = (np.array(row.affine).reshape(4, 4) for row in (whole, part))
    move = np.linalg.inv(to_whole) @ of_part
    start = round(move[0, 3])
    expected = np.eye(4)
    expected[0, 3] = start
    if part.num_slices == 1:
        expected[:3, 0] = move[:3, 0]  # one slice states no distance to the next
    size = np.array([part.num_slices, part.rows, part.columns, 1])
    if np.abs((move - expected) * size).max() > 1e-2 or start < 0:
        return None
    return start if start + part.num_slices <= whole.num_slices else None


def _pair_name(row: VolumeRow) -> str:
    return str(json.loads(row.facts).get(PAIR_NAME, ""))


def _corners(row: VolumeRow) -> np.ndarray:
    affine = np.array(row.affine).reshape(4, 4)
    shape = np.array([row.num_slices, row.rows, row.columns, 1.0])
    ends = np.array([(i, j, k, 1) for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * shape
    return np.asarray(ends @ affine.T)


def _tuples(content: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where facts have tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
