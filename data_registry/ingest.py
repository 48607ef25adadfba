"""`ingest`: files into a registry, in parallel, in full or not at all, and once only."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core_mri.errors import ConfigError, DataError
from core_mri.volume import Volume
from data_registry.schema import Codec
from data_registry.source_list import Source

if TYPE_CHECKING:
    from data_registry.batches import Batch, BatchResult
    from data_registry.catalogue import Registry
    from data_registry.inventory import Inventory, Unit
    from data_registry.ray_pool import RayPool
    from data_registry.worker_pool import WorkerPool

_EXAMPLES = 3
_MAX_UNITS = 256
_FEW_FILES = 1000
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """What to ingest, and into which registry."""

    registry: Path
    """Folder of the registry; made when it does not exist."""
    sources: tuple[Source, ...]
    """Where the scans lie; see `data_registry.load_sources`."""
    key_file: Path | None = None
    """Project key; ``<registry>.key`` beside the registry when None, made at the first ingest."""
    jobs: int = 0
    """Worker processes; 0 takes all cores, 1 works in this process."""
    ray: str = ""
    """Address of a Ray cluster whose machines read instead (`RayPool`); ``local`` starts one."""
    private_log: Path | None = None
    """JSON lines of keyed id, path and reason, readable by the owner only; None writes none."""
    retry: bool = False
    """Look again at files in quarantine that have not changed."""
    max_frames: int = 16
    """Frames kept of a 4D file, evenly spread."""
    compression: Codec = "bitshuffle-lz4"
    """How new shards store slices."""
    shard_mb: int = 1024
    """Size of the files (MB) that make up one shard, and one commit."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("CONFIG-01", "sources is empty: there is nothing to ingest.")
        for name, lowest in (("jobs", 0), ("max_frames", 1), ("shard_mb", 1)):
            if getattr(self, name) < lowest:
                raise ConfigError(
                    "CONFIG-01", f"{name} = {getattr(self, name)}: must be at least {lowest}."
                )


@dataclass(kw_only=True)
class IngestReport:
    """What one ingest did."""

    files: int = 0
    """Files found in the sources."""
    files_known: int = 0
    """Stored before and unchanged, so not read."""
    volumes_added: int = 0
    """New volumes, images and labels."""
    slices_added: int = 0
    """Their slices."""
    volumes_known: int = 0
    """Volumes read from new files that the registry has already."""
    volumes_retired: int = 0
    """Volumes that no longer are in their file, which has changed."""
    possible_duplicates: int = 0
    """New images with the same voxels as one of another subject."""
    shared_series: int = 0
    """Series UIDs that files of several patients state; each patient's files were kept apart."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Files below the roots that no source takes, by kind of name."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """Reason -> series and single files that could not be stored, now or before."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> keyed ids of the first few."""
    noted: set[tuple[str, str]] = field(default_factory=set, repr=False)
    """Reason and keyed id of all: copies of one series count once."""

    def note(self, reason: str, unit_id: str) -> None:
        """Count one quarantined unit."""
        if (reason, unit_id) in self.noted:
            return
        self.noted.add((reason, unit_id))
        self.quarantined[reason] = self.quarantined.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(unit_id)

    def to_mapping(self) -> dict[str, object]:
        """The counts, ready for JSON."""
        hidden = ("noted",)
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in hidden}


def ingest(
    config: IngestConfig, on_progress: Callable[[int, int], None] | None = None
) -> IngestReport:
    """Read scans, check, label and de-identify them, and add them to a registry.

    Running it again adds nothing and reads nothing that has not changed. Killed at any moment, it
    leaves the last commit; running it again completes it. With more than one job the caller's main
    module must be importable (``if __name__ == "__main__":``), as worker processes are spawned.

    Args:
        config: What and where.
        on_progress: Called with units read and units in all.

    Raises:
        ConfigError: CONFIG-03 when the registry folder holds something else, CONFIG-05 for another
            key than the registry's or another source of a known name, and what sources and key file
            raise.
        DataError: DATA-01 when nothing can be read, DATA-07 when the disk is full, DATA-08 when the
            registry is damaged, of a newer version or being written by another process.
    """
    from core_mri.devices import available_cores
    from data_registry.batches import Batch
    from data_registry.catalogue import Registry, reason_of
    from data_registry.commits import sole_writer, sweep
    from data_registry.committer import Committer, check_promises, complete_sources, log_left_out
    from data_registry.governance.audit_log import recorded
    from data_registry.inventory import Inventory
    from data_registry.reading import read_batch

    for source in config.sources:
        _check_source(source)
    registry = Registry.create(config.registry)
    key_file = config.key_file or config.registry.with_name(f"{config.registry.name}.key")
    jobs = config.jobs or available_cores()
    report = IngestReport()
    with (
        sole_writer(registry),
        _open_pools(config, jobs) as pool_for,
        recorded(registry.path, "ingest") as what,
    ):
        what["sources"] = sorted({source.name for source in config.sources})
        key = _open_key(registry, key_file)
        sweep(registry)
        check_promises(registry, config.sources)
        complete_sources(registry, config.sources)
        inventory = Inventory(registry, key, retry=config.retry)
        log = config.private_log
        _take_stock(
            inventory, config, pool_for, [config.registry, key_file, *([log] if log else [])]
        )
        report.files = inventory.num_files()
        report.shared_series = inventory.num_shared_series()
        report.left_out = inventory.count_left_out()
        if log is not None:
            log_left_out(log, inventory.left_out())
        report.files_known, quarantined = inventory.known()
        for code, units in quarantined.items():
            for unit_id in units:
                report.note(reason_of(code), unit_id)
        total, done = inventory.num_units(), 0
        committer = Committer(registry, report, log)
        with pool_for(total) as pool:
            batches = _batches(inventory, config, registry, key, pool.num_workers)
            for batch, result in pool.each(read_batch, batches, Batch.single_units):
                committer.add(result or _crashed(batch))
                done += len(batch.units)
                if on_progress is not None:
                    on_progress(min(done, total), total)
        inventory.close()
        sweep(registry)  # shards of workers that died
        what |= {n: v for n, v in report.to_mapping().items() if isinstance(v, int) and v}
        what["quarantined"] = report.quarantined
    if report.files_known + report.volumes_added + report.volumes_known == 0:
        raise _nothing_readable(report)
    return report


PoolFor = Callable[[int], AbstractContextManager["WorkerPool | RayPool"]]
"""Number of pieces of work to the pool that does them."""


@contextmanager
def _open_pools(config: IngestConfig, jobs: int) -> Iterator[PoolFor]:
    """New processes of this machine for each kind of work, or one Ray cluster for all."""
    if config.ray:
        from data_registry.ray_pool import RayPool

        with RayPool(config.ray) as cluster:
            yield lambda _: nullcontext(cluster)
        return
    from data_registry.worker_pool import WorkerPool

    yield lambda pieces: WorkerPool(max(1, min(jobs, pieces)))


def _take_stock(
    inventory: Inventory, config: IngestConfig, pool_for: PoolFor, skip: Sequence[Path]
) -> None:
    """List all files, and tell the series of those that are new."""
    from data_registry.first_look import Header, look_at

    for entry, source in enumerate(config.sources):
        inventory.add(entry, source, skip)
    with pool_for(inventory.num_files() // _FEW_FILES + 1) as pool:
        for files, headers in pool.each(look_at, inventory.unknown()):
            inventory.describe(
                headers or [(number, Header()) for number, _ in files], config.sources
            )


def _batches(
    inventory: Inventory, config: IngestConfig, registry: Registry, key: bytes, jobs: int
) -> Iterator[Batch]:
    """Units in batches of one shard's size, small enough that every worker has some."""
    from data_registry.batches import Batch
    from data_registry.governance.withdrawals import withdrawn

    marks = withdrawn(registry.path)
    most = max(1, min(_MAX_UNITS, math.ceil(inventory.num_units() / (4 * jobs))))

    def batch(units: Sequence[Unit]) -> Batch:
        return Batch(
            registry=registry.path,
            key=key,
            fractions=registry.info.fractions,
            codec=config.compression,
            max_frames=config.max_frames,
            withdrawn=marks,
            units=tuple(units),
        )

    waiting: list[Unit] = []
    for unit in inventory.units(config.sources):
        waiting.append(unit)
        if len(waiting) >= most or sum(u.size for u in waiting) >= config.shard_mb * 2**20:
            yield batch(waiting)
            waiting = []
    if waiting:
        yield batch(waiting)


def _crashed(batch: Batch) -> BatchResult:
    """The result of a unit whose worker process died twice."""
    from data_registry.batches import BatchResult, Failure, UnitResult

    message = "the process that read it died"
    return BatchResult(
        None,
        [
            UnitResult(u, failures=[Failure("RUN-02", message, tuple(f.path for f in u.files))])
            for u in batch.units
        ],
    )


def _open_key(registry: Registry, path: Path) -> bytes:
    """The project key; a registry stays with the key of its first ingest.

    Raises:
        ConfigError: CONFIG-02 when the key of a registry has gone, CONFIG-05 when it is another.
    """
    from data_registry.commits import bind_key
    from data_registry.deidentify.identifiers import load_key, pseudonym

    bound = registry.info.key_check
    existed = path.exists()
    if bound and not existed:
        raise ConfigError(
            "CONFIG-02",
            f"no key file at {path}, and the ids of {registry.path} were made with one.",
            fix="Give it with --key-file. A new key would turn each patient into two.",
        )
    key = load_key(path, create=True)
    check = pseudonym(key, "registry", "key check")
    if bound and check != bound:
        raise ConfigError(
            "CONFIG-05",
            f"the key in {path} is not the one that {registry.path} was made with.",
            fix="Give the right one with --key-file.",
        )
    if not existed:
        logger.warning(
            "made the project key %s: keep it apart from the data, and do not lose it", path
        )
    if not bound:
        bind_key(registry, check)
    return key


def _check_source(source: Source) -> None:
    """Find mistakes of a source before hours of reading.

    Raises:
        ConfigError: CONFIG-01 for a region or sequence that does not exist, and as `Source.folder`.
    """
    from data_registry.governance.licences import licence_terms
    from data_registry.labels import label_volume
    from data_registry.source_cards import declared_by

    voxel = Volume(np.zeros((1, 1, 1), dtype=np.uint8), np.eye(4))
    label_volume({}, voxel, {"region": source.region, "sequence": source.sequence})
    source.folder()
    if not licence_terms(source.licence, declared_by(source.licence, source.card)).known:
        logger.warning(
            "source %s: nothing is known of its licence (%s), so its data can never be exported",
            source.name,
            source.licence,
        )


def _nothing_readable(report: IngestReport) -> DataError:
    if not report.files:
        return DataError(
            "DATA-01",
            "no file in the given sources.",
            fix="Check the paths, and the include and exclude patterns.",
        )
    reasons = "; ".join(
        f"{reason}: {n} ({', '.join(report.examples[reason])}{', ...' if n > _EXAMPLES else ''})"
        for reason, n in report.quarantined.items()
    )
    return DataError(
        "DATA-01",
        f"none of {report.files} file(s) could be stored. {reasons}.",
        fix="See which files the ids mean with --private-log FILE --retry.",
    )
