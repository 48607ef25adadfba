"""`export`: volumes of a registry to files other programs read, each whole and once."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from core_mri.errors import ConfigError, DataError
from data_registry.governance.uses import record_use
from data_registry.shards import PARTIAL, cannot_write

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

Format = Literal["nifti", "bids", "nnunet", "monai", "webdataset", "fastmri", "ismrmrd"]
Release = Literal["restricted", "public"]
ROLES: dict[Format, tuple[str, ...]] = {
    "nifti": ("image", "label"),
    "bids": ("image", "label"),
    "nnunet": ("image", "label"),
    "monai": ("image", "label"),
    "webdataset": ("image",),
    "fastmri": ("kspace",),
    "ismrmrd": ("kspace",),
}
"""Roles of volumes that a format can hold."""

MARK, MANIFEST = "export.json", "manifest.csv"
"""What says of which export a folder is, and what each of its files is."""
_COLUMNS = (
    "path", "volume_id", "role", "subject_id", "split", "source", "licence", "region", "sequence",
    "labels_of",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to export, and where to."""

    registry: Path
    """Folder of the registry."""
    out: Path
    """Folder to write; new, empty, or left by an interrupted export of the same."""
    format: Format
    """``nifti`` and ``bids`` hold images and label maps, ``nnunet`` and ``monai`` images with the
    label map of each, ``webdataset`` slices of images, ``fastmri`` and ``ismrmrd`` raw data."""
    where: str = ""
    """SQL condition on the columns of `VolumeRow`; all volumes when empty."""
    cohort: str = ""
    """Name of a frozen cohort of which the volumes must be; empty for all."""
    release: Release = "restricted"
    """``public`` refuses what was not de-identified for it and looked at by a person."""
    reviewed: tuple[Path, ...] = ()
    """For ``public``: output folders of `core-mri data deidentify` that were ingested."""
    key_file: Path | None = None
    """For ``public``: the project key; ``<registry>.key`` beside the registry when None."""
    exclude_noncommercial: bool = False
    """Leave out sources whose licence does not permit commercial use in so many words."""


@dataclass(frozen=True)
class ExportReport:
    """What one export did."""

    written: int
    """Files written now."""
    kept: int
    """Files that an earlier run had completed."""
    other_roles: int
    """Volumes that meet the condition but that the format cannot hold: of other roles, or without
    a label map where one is needed."""
    licence: str = field(default="", compare=False)
    """SPDX expression of all that was written."""
    noncommercial: dict[str, int] = field(default_factory=dict)
    """Volumes left out by `ExportConfig.exclude_noncommercial`, by source."""


def export(
    config: ExportConfig, on_progress: Callable[[int, int], None] | None = None
) -> ExportReport:
    """Write the volumes of a registry as files, with a `manifest.csv` that says what each is.

    `LICENSE` tells the most restrictive terms of all sources, and who asks to be cited;
    `export.json` has them for programs.

    Geometry is exact: voxels are permuted and flipped to RAS+, never interpolated. Headers hold
    what the registry holds, which is de-identified. Interrupted, it goes on where it was.

    Args:
        config: What and where.
        on_progress: Called with files done and files in all.

    Raises:
        ConfigError: CONFIG-01 for a wrong condition, CONFIG-03 when the folder holds something
            else, and what `data_registry.export_cases.Cases` raises.
        DataError: DATA-07 when the disk is full, DATA-08 for a damaged registry, DATA-09 when
            nothing is selected, DATA-28 when a licence is unknown or, for a public release, does
            not permit copies to others; for a public release what `check_release` raises.
    """
    from data_registry.catalogue import Registry
    from data_registry.cohorts import condition
    from data_registry.governance.licence_notes import licence_notes
    from data_registry.governance.propagation import (
        check_export,
        mixture_of,
        noncommercial_cost,
        only_commercial,
        registered_sources,
    )

    registry = Registry.open(config.registry)
    where = condition(registry, config.cohort, config.where)
    noncommercial = {}
    if config.exclude_noncommercial:
        noncommercial = noncommercial_cost(registry, where)
        where = " AND ".join(filter(None, (where, only_commercial(registry))))
    selected = registry.volumes(where)
    rows = [row for row in selected if row.role in ROLES[config.format]]
    if not rows:
        raise DataError(
            "DATA-09",
            f"no volume of {config.registry} to export: {config.format} holds "
            f"{' and '.join(ROLES[config.format])} volumes, {len(selected)} others meet the "
            "condition.",
            fix=f"Look at `core-mri data ls --registry {config.registry}`.",
        )
    known = registered_sources(registry)
    sources = [known[name] for name in sorted({row.source for row in rows})]
    check_export(sources, public=config.release == "public")
    if config.release == "public":
        from data_registry.deidentify.identifiers import load_key
        from data_registry.release import check_release

        key_file = config.key_file or config.registry.with_name(f"{config.registry.name}.key")
        check_release(registry, rows, config.reviewed, load_key(key_file, create=False))
    layout = _layout(registry, rows, where, config.format)
    places = list(layout.places())
    files = list(layout.files())
    _claim(config)
    what = {
        "format": config.format, "folder": str(config.out.resolve()), "volumes": len(places),
        "release": config.release, "cohort": config.cohort,
    }  # fmt: skip
    record_use(config.registry, "export", [row.subject_id for row, _ in places], what)
    written = 0
    for number, (path, write) in enumerate(files, start=1):
        if not (config.out / path).exists():
            write(config.out / path)
            written += 1
        if on_progress is not None:
            on_progress(number, len(files))
    for path, text in layout.describe():
        write_text(config.out / path, text)
    whole = mixture_of(sources)
    write_text(config.out / "LICENSE", licence_notes(sources))
    _write_mark(config, {"licence": whole.to_mapping()})
    write_text(config.out / MANIFEST, _csv([_line(registry, row, p) for row, p in places]))
    return ExportReport(
        written=written,
        kept=len(files) - written,
        other_roles=len(selected) - len(places),
        licence=whole.licence,
        noncommercial=noncommercial,
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file aside and rename it.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    aside = path.with_name(f"{PARTIAL}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.rename(path)
    except OSError as error:
        raise cannot_write(error, f"{path}") from error


def _claim(config: ExportConfig) -> None:
    """Mark the folder as this export's, or see that it is.

    Raises:
        ConfigError: CONFIG-03 when it holds something else.
    """
    mark = config.out / MARK
    if mark.is_file():
        try:
            found = json.loads(mark.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if isinstance(found, dict) and {"exclude_noncommercial": False} | found == found | _what(
            config
        ):
            return
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise ConfigError(
            "CONFIG-03",
            f"{config.out} is not empty and is not of this export.",
            fix="Give --out a new or empty folder.",
        )
    _write_mark(config, {})


def _what(config: ExportConfig) -> dict[str, object]:
    """What must be the same for an export to go on."""
    return {
        "format": config.format, "where": config.where, "cohort": config.cohort,
        "registry": str(config.registry.resolve()),
        "exclude_noncommercial": config.exclude_noncommercial,
    }  # fmt: skip


def _write_mark(config: ExportConfig, more: dict[str, object]) -> None:
    write_text(config.out / MARK, json.dumps(_what(config) | more, indent=2) + "\n")


class Layout(Protocol):
    """Where an export puts what."""

    def places(self) -> Iterator[tuple[VolumeRow, Path]]:
        """Each volume with its path below the output folder, for the manifest."""

    def files(self) -> Iterator[tuple[Path, Callable[[Path], None]]]:
        """Each file, and what writes it."""

    def describe(self) -> Iterator[tuple[Path, str]]:
        """Texts about the whole."""


@dataclass(frozen=True)
class _Volumes:
    """A file for each volume."""

    registry: Registry
    rows: list[VolumeRow]
    form: Format

    def places(self) -> Iterator[tuple[VolumeRow, Path]]:
        if self.form == "bids":
            from data_registry.export_bids import bids_paths

            yield from bids_paths(self.registry, self.rows)
            return
        for row in self.rows:
            name = f"{row.volume_id}{'_label' if row.role == 'label' else ''}"
            suffix = "nii.gz" if self.form == "nifti" else "h5"
            yield row, Path(f"sub-{row.subject_id}") / f"{name}.{suffix}"

    def files(self) -> Iterator[tuple[Path, Callable[[Path], None]]]:
        for row, path in self.places():
            yield path, functools.partial(_WRITERS[self.form], self.registry, row)

    def describe(self) -> Iterator[tuple[Path, str]]:
        if self.form == "bids":
            from data_registry.export_bids import describe_dataset

            yield from describe_dataset(self.rows)


def _layout(registry: Registry, rows: list[VolumeRow], where: str, form: Format) -> Layout:
    if form == "nnunet" or form == "monai":
        from data_registry.export_cases import Cases

        return Cases(registry, rows, form)
    if form == "webdataset":
        from data_registry.export_webdataset import Tars

        return Tars(registry, where)
    return _Volumes(registry, rows, form)


def _line(registry: Registry, row: VolumeRow, path: Path) -> dict[str, object]:
    images = registry.images_of(row) if row.role == "label" else []
    return {
        "path": path.as_posix(),
        **{name: getattr(row, name) for name in _COLUMNS[1:-1]},
        "labels_of": " ".join(image.volume_id for image in images),
    }


def _csv(lines: list[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _write_nifti(registry: Registry, row: VolumeRow, path: Path) -> None:
    from core_mri.files.nifti import write_nifti

    write_nifti(registry.read(row).reorient("RAS"), path)


def _write_bids(registry: Registry, row: VolumeRow, path: Path) -> None:
    from data_registry.export_bids import sidecar

    # The image comes last: where it is, all of it is.
    for beside, text in sidecar(row, path):
        write_text(beside, text)
    _write_nifti(registry, row, path)


def _write_fastmri(registry: Registry, row: VolumeRow, path: Path) -> None:
    from core_mri.files.kspace import write_kspace

    write_kspace(registry.read_kspace(row), path, layout="fastmri")


def _write_ismrmrd(registry: Registry, row: VolumeRow, path: Path) -> None:
    from core_mri.files.kspace import write_kspace

    write_kspace(registry.read_kspace(row), path, layout="ismrmrd")


_WRITERS: dict[Format, Callable[[Registry, VolumeRow, Path], None]] = {
    "nifti": _write_nifti,
    "bids": _write_bids,
    "fastmri": _write_fastmri,
    "ismrmrd": _write_ismrmrd,
}
