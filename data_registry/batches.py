"""What goes to a worker and what comes back: batches of units, and what became of each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from data_registry.inventory import Unit
from data_registry.schema import Codec, FileRow, ShardRow, SliceRow, VolumeRow
from data_registry.splits import Fractions


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Units that one worker reads into one shard."""

    registry: Path
    key: bytes
    fractions: Fractions
    codec: Codec
    max_frames: int
    withdrawn: frozenset[str]
    """Marks of patients of whom nothing may be stored."""
    units: tuple[Unit, ...]

    def single_units(self) -> list[Batch]:
        """The same work, one unit at a time."""
        return [dataclasses.replace(self, units=(unit,)) for unit in self.units]


@dataclass(frozen=True)
class Failure:
    """Why files of a unit were not stored."""

    code: str
    message: str
    """For the private log: it may name files and values."""
    paths: tuple[Path, ...]


@dataclass
class UnitResult:
    """What became of one unit."""

    unit: Unit
    volumes: list[VolumeRow] = field(default_factory=list)
    """New volumes; their split is a proposal, the ledger has the last word."""
    slices: list[SliceRow] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    """Ids of volumes that the registry has already, from these or other files."""
    failures: list[Failure] = field(default_factory=list)

    def files(self) -> list[FileRow]:
        """The ledger rows of the unit, with the codes of its failures."""
        codes = {path: failure.code for failure in self.failures for path in failure.paths}
        return [
            dataclasses.replace(file.row, code=codes.get(file.path, "")) for file in self.unit.files
        ]


@dataclass(frozen=True)
class BatchResult:
    """The units of a batch, in order, and the shard that holds their new volumes, if any."""

    shard: ShardRow | None
    units: list[UnitResult]
