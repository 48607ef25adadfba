"""Frozen features of scans: of one, of a folder, or of volumes of a registry.

Volumes are read one by one. Of a single scan the output is replaced when it is complete. Many leave
a run folder (the output itself, or beside a table one named ``.NAME.parts``), so that the same
command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from core_mri.errors import ConfigError, CoreMRIError, DataError, Interrupted
from core_mri.runs import Run, writing

if TYPE_CHECKING:
    from core_mri.files.search import FoundVolume
    from core_mri.predictor import Embedding, Predictor
    from core_mri.volume import Volume

log = logging.getLogger(__name__)

TOLD = 3
"""Scans left out for one reason that are named; all are counted."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Frozen features of scans: SOURCE IMAGE --out F.npz, or many scans to a table or a folder."""

    source: Annotated[str, tyro.conf.Positional]
    """Weights: whatever core_mri.load_model accepts."""
    image: Annotated[Path | None, tyro.conf.Positional] = None
    """A scan, or a folder that is searched with its subfolders; none with --registry."""
    out: Path
    """F.npz: slices and patches of one scan. F.parquet: one table of vectors. Another name: a
    folder with an npz a scan."""
    registry: Path | None = None
    """Folder of a data registry, instead of IMAGE."""
    cohort: str = ""
    """Of the registry: only the volumes of this frozen cohort."""
    where: str = ""
    """Of the registry: SQL condition on the columns of its volumes."""
    level: Literal["slice", "volume"] = "slice"
    """Of a table: a row a slice, or the mean over the slices of a volume."""
    patches: bool = True
    """Of npz: keep the patch tokens too, h x w vectors a slice."""
    picture: bool = False
    """Of npz: a PNG beside each, slices above the first three components of their patches."""
    spacing_mm: tuple[float, float, float] | None = None
    """Of pictures and .npy, which state none: distance of columns, rows and slices."""
    image_size: int | None = None
    """Side of the square each slice is resized to, a multiple of the patch size; by default the one
    the weights were trained at."""
    batch_size: int = 16
    """Slices at a time."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on CUDA devices that have it, else float32."""
    compile: bool = False
    """Compile the encoder first; worth it for many scans."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        wrong = []
        if (self.image is None) == (self.registry is None):
            wrong.append("give either IMAGE or --registry")
        if self.registry is None and (self.cohort or self.where):
            wrong.append("--cohort and --where belong to --registry")
        if self.is_table and self.picture:
            wrong.append("--picture needs .npz or a folder")
        if not self.is_table and self.level == "volume":
            wrong.append("--level volume needs .parquet")
        if self.batch_size < 1:
            wrong.append("--batch-size must be 1 or more")
        image = self.image
        if image is not None and image.resolve() in self.out.resolve().parents:
            wrong.append(f"--out {self.out} lies in {image}, where scans are searched")
        if wrong:
            raise ConfigError("CONFIG-05", f"embed: {'; '.join(wrong)}.")

    @property
    def is_table(self) -> bool:
        """Whether one Parquet table is written."""
        return self.out.suffix == ".parquet"


@dataclass
class Embedded:
    """What was done."""

    volumes: int = 0
    """New ones."""
    slices: int = 0
    """Of the new volumes."""
    earlier: int = 0
    """Volumes of an interrupted start of the same command."""
    failed: Counter[str] = field(default_factory=Counter)
    """Error code to number of scans that could not be embedded."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the results depend on; a folder is continued only by the same."""

    image: Path | None
    registry: Path | None
    cohort: str
    where: str
    level: str
    patches: bool
    picture: bool
    image_size: int
    precision: str
    weights: str
    """Hash of the tensors."""


def embed(config: EmbedConfig) -> Embedded:
    """Embed scans; see `core_mri.embeddings` for what is written.

    Scans that cannot be read are logged and counted, the others are done. A scan that changes
    between two starts of one command is not looked at again.

    Raises:
        ConfigError: CONFIG-03 when the folder holds something else, CONFIG-04 when it holds
            features of other weights or settings, CONFIG-05 for settings that do not fit.
        DataError: DATA-01 nothing there, DATA-07 the output cannot be written, DATA-09 no volume of
            the registry fits; when all scans fail, the error of the first.
        WeightsError: As `core_mri.load_model`.
        Interrupted: What is complete is kept.
    """
    from core_mri.predictor import Predictor
    from core_mri.weights import load_model
    from core_mri.weights.fingerprint import weights_fingerprint

    found, failed = _volumes(config)
    for index, error in enumerate(failed):
        _tell(error, failed[:index])
    is_single = config.out.suffix == ".npz"
    if is_single and len(found) > 1:
        raise ConfigError(
            "CONFIG-05",
            f"{len(found)} volumes were found, an .npz holds one: "
            f"{', '.join(volume.name for volume in found[:5])}.",
            fix="Choose a folder or a .parquet file as --out.",
        )
    predictor = Predictor(
        load_model(config.source, device=config.device),
        image_size=config.image_size,
        batch_size=config.batch_size,
        precision=config.precision,
        compiled=config.compile,
    )
    embedder = _Embedder(config, predictor, weights_fingerprint(predictor.encoder))
    if is_single:
        slices = embedder.write_npz(found[0], config.out)
        return Embedded(1, slices, failed=Counter(error.code for error in failed))
    folder = config.out
    if config.is_table:
        folder = config.out.with_name(f".{config.out.name}.parts")
    with Run.open(folder, embedder.job) as run:
        done = (
            embedder.table(found, failed, run)
            if config.is_table
            else (embedder.folder(found, failed, run))
        )
    if config.is_table:
        shutil.rmtree(folder)
    return done


def _volumes(config: EmbedConfig) -> tuple[list[FoundVolume], list[CoreMRIError]]:
    """What is to be embedded, and what files that form no volume lack."""
    from core_mri.files.search import FoundVolume, find_volumes

    if config.image is not None:
        found, rejected = find_volumes(config.image, spacing_mm=config.spacing_mm)
        failed = [error for _, error in rejected]
        if not found:
            raise (
                failed[0]
                if failed
                else DataError("DATA-01", f"{config.image}: holds no image of a known format.")
            )
        return found, failed
    from data_registry.catalogue import Registry
    from data_registry.cohorts import load

    assert config.registry is not None
    registry = Registry.open(config.registry)
    where = ["role = 'image'"] + ([f"({config.where})"] if config.where else [])
    parameters = []
    if config.cohort:
        parameters = [load(registry, config.cohort).name]
        where.append("volume_id IN (SELECT volume_id FROM cohort_members WHERE cohort = ?)")
    rows = registry.volumes(" AND ".join(where), parameters)
    if not rows:
        raise DataError(
            "DATA-09",
            f"{config.registry}: no image fits.",
            fix=f"Look at `core-mri data stats --registry {config.registry}`.",
        )
    return [FoundVolume(row.volume_id, partial(registry.read, row)) for row in rows], []


@dataclass(frozen=True)
class _Embedder:
    """A model and where its features go."""

    config: EmbedConfig
    predictor: Predictor
    weights: str
    """Hash of the tensors."""

    @property
    def job(self) -> _Job:
        """What the results depend on."""
        config = self.config
        return _Job(
            image=config.image,
            registry=config.registry,
            cohort=config.cohort,
            where=config.where,
            level=config.level,
            patches=config.patches,
            picture=config.picture,
            image_size=self.predictor.image_size,
            precision=self.predictor.precision,
            weights=self.weights,
        )

    def folder(self, found: list[FoundVolume], failed: list[CoreMRIError], run: Run) -> Embedded:
        """An npz a volume."""

        def path(volume: FoundVolume) -> Path:
            return run.out / f"{volume.name}.npz"

        earlier = {volume.name for volume in found if path(volume).is_file()}
        return _each(
            found, failed, earlier, run, lambda volume: self.write_npz(volume, path(volume))
        )

    def table(self, found: list[FoundVolume], failed: list[CoreMRIError], run: Run) -> Embedded:
        """One table, of parts that are joined at the end."""
        from core_mri.embeddings import TableParts, rows_of

        parts = TableParts(run.out)

        def add(volume: FoundVolume) -> int:
            embedding = self._embed(volume.name, volume.read(), patches=False)
            parts.add(rows_of(embedding, volume.name, self.config.level))
            return embedding.shape[0]

        try:
            done = _each(found, failed, parts.volumes(), run, add)
        except Interrupted:
            parts.flush()
            raise
        facts = json.dumps(asdict(self.job), default=str)
        parts.join(self.config.out, {"core-mri embed": facts})
        return done

    def write_npz(self, found: FoundVolume, path: Path) -> int:
        """Features of one volume after its picture; the number of slices."""
        from core_mri.embeddings import save_npz

        config = self.config
        volume = found.read()
        wanted = config.patches or config.picture
        embedding = self._embed(found.name, volume, patches=wanted)
        if config.picture:
            _write_picture(volume, embedding, path.with_suffix(".png"))
        if not config.patches:
            embedding = embedding._replace(patches=embedding.patches[:, :0, :0])
        save_npz(embedding, path, volume=found.name, weights=self.weights)
        return embedding.shape[0]

    def _embed(self, name: str, volume: Volume, *, patches: bool) -> Embedding:
        """Errors of voxels name the volume, as those of files do."""
        try:
            return self.predictor.embed(volume, patches=patches)
        except CoreMRIError as error:
            raise type(error)(error.code, f"{name}: {error.message}", fix=error.fix) from error


def _each(
    found: list[FoundVolume],
    failed: list[CoreMRIError],
    earlier: set[str],
    run: Run,
    write: Callable[[FoundVolume], int],
) -> Embedded:
    """Call `write` for every volume that is not there yet.

    Raises:
        CoreMRIError: The first of `failed` or of the volumes when none could be embedded.
        Interrupted: After a signal, between two volumes.
    """
    done = Embedded(earlier=sum(volume.name in earlier for volume in found))
    errors = list(failed)
    started = time.perf_counter()
    with run.progress(len(found), "embed") as update:
        for number, volume in enumerate(found, start=1):
            if volume.name in earlier:
                continue
            try:
                done.slices += write(volume)
            except CoreMRIError as error:
                if error.code == "DATA-07":
                    raise
                _tell(error, errors)
                errors.append(error)
            else:
                done.volumes += 1
            update(number, f"{done.slices / (time.perf_counter() - started):.1f} slices/s")
            if run.stop_requested and number < len(found):
                raise Interrupted(
                    f"stopped with {done.volumes + done.earlier} of {len(found)} volumes, which "
                    f"are kept in {run.out}. Run the same command again to continue."
                )
    if not done.volumes and not done.earlier:
        raise errors[0]
    done.failed = Counter(error.code for error in errors)
    return done


def _tell(error: CoreMRIError, earlier: list[CoreMRIError]) -> None:
    """Log what was left out: the first few of each code."""
    alike = sum(other.code == error.code for other in earlier)
    if alike < TOLD:
        log.warning("left out: %s", error)
    elif alike == TOLD:
        log.warning("left out: more with %s", error.code)


def _write_picture(volume: Volume, embedding: Embedding, path: Path) -> None:
    from core_mri.pictures import patch_colors
    from core_mri.preprocess import Preprocess
    from core_mri.volume import SLICE_ORIENTATION

    _, row_mm, column_mm = np.linalg.norm(embedding.affine[:3, :3], axis=0).tolist()
    figure = patch_colors(
        Preprocess().apply(volume).array,
        embedding.patches,
        orientation=SLICE_ORIENTATION[volume.plane][1:],
        spacing_mm=(row_mm, column_mm),
    )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=144, metadata={"Software": None})
