"""Contact sheets of volumes: a few slices of each, as a picture or a page."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core_mri.errors import ConfigError, DataError
from core_mri.pictures import CONVENTION, contact_sheet
from core_mri.reports import Report
from core_mri.volume import SLICE_ORIENTATION
from data_registry.cohorts import condition
from data_registry.shards import PARTIAL, cannot_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow
    from data_registry.shards import Array


def write_sheets(
    registry: Registry,
    out: Path,
    *,
    where: str = "",
    cohort: str = "",
    num_slices: int = 6,
    limit: int = 24,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Draw images and label maps, each in the intensity window that the catalogue holds for it.

    Of each volume only the slices that are drawn are read.

    Args:
        registry: The registry.
        out: ``.png``: one picture, a row a volume; ``.html``: a page.
        where: SQL condition on the columns of `VolumeRow`.
        cohort: Name of a frozen cohort.
        num_slices: Of each volume, evenly spread.
        limit: Volumes at most, evenly spread over the order of ids.
        on_progress: Called with volumes drawn and volumes in all.

    Returns:
        Volumes drawn, and volumes that fit.

    Raises:
        ConfigError: CONFIG-01 for another kind of file or a wrong condition.
        DataError: DATA-07 when it cannot be written, DATA-08 for a damaged registry, DATA-09 when
            nothing fits.
    """
    if out.suffix not in (".png", ".html"):
        raise ConfigError("CONFIG-01", f"--out {out}: the name of a sheet ends in .png or .html.")
    chosen = "role <> 'kspace'"
    if more := condition(registry, cohort, where):
        chosen += f" AND {more}"
    ids = registry.sql(f"SELECT volume_id FROM volumes WHERE {chosen} ORDER BY 1")["volume_id"]
    if not len(ids):
        raise DataError(
            "DATA-09",
            f"no image or label map of {registry.path} fits.",
            fix=f"Look at `core-mri data ls --registry {registry.path}`.",
        )
    places = np.unique(np.linspace(0, len(ids) - 1, min(limit, len(ids))).round().astype(int))

    def rows() -> Iterator[VolumeRow]:
        for number, place in enumerate(places.tolist(), start=1):
            yield registry.volume(ids[place].as_py())
            if on_progress is not None:
                on_progress(number, len(places))

    if out.suffix == ".html":
        report = Report(
            "Contact sheets", f"{len(places)} of {len(ids)} volumes.", registry.path.name
        )
        for row in rows():
            report.add_figure(row.region, _sheet(registry, [row], num_slices), _title(row))
        report.add_text("About the pictures", CONVENTION)
        report.write(out)
    else:
        _write_png(_sheet(registry, list(rows()), num_slices), out)
    return len(places), len(ids)


def _sheet(registry: Registry, rows: list[VolumeRow], num_slices: int) -> Figure:
    """A row of slices for each volume, filled up with black; its title stands over the first.

    Volumes of one slice share rows.
    """
    most = max(min(num_slices, row.num_slices) for row in rows)
    images: list[Array] = []
    titles, orientations, windows, spacings = [], [], [], []
    for row in rows:
        chosen = np.linspace(0, row.num_slices - 1, min(num_slices, row.num_slices)).round()
        for index in chosen.astype(int).tolist():
            images.append(registry.read_slice(row, index))
            titles.append(f"slice {index}" if index else _short(row))
            # Pictures state no place in the patient: letters would be made up.
            placed = not json.loads(row.facts).get("AssumedGeometry")
            orientations.append(SLICE_ORIENTATION[row.plane][1:] if placed else "")  # type: ignore[index]
            windows.append((row.window_low, max(row.window_high, row.window_low + 1e-6)))
            spacings.append(row.spacing_mm[1:])
        missing = (most - len(chosen)) if len(rows) > 1 else 0
        images += [np.zeros((1, 1))] * missing
        titles += [""] * missing
        orientations += [""] * missing
        windows += [(0.0, 1.0)] * missing
        spacings += [(1.0, 1.0)] * missing
    return contact_sheet(
        images,
        titles,
        most if most > 1 else num_slices,
        orientations=orientations,
        windows=windows,
        spacings_mm=spacings,  # type: ignore[arg-type]
    )


def _short(row: VolumeRow) -> str:
    what = "labels" if row.role == "label" else row.sequence
    return f"{row.region} {what} {row.volume_id[:5]}"


def _title(row: VolumeRow) -> str:
    size = f"{row.num_slices} x {row.rows} x {row.columns}"
    spacing = " x ".join(f"{s:.3g}" for s in row.spacing_mm)
    return (
        f"{row.volume_id}: {row.role}, {row.sequence}, {row.plane}, {size} voxels of {spacing} mm, "
        f"{row.source}, {row.split}"
    )


def _write_png(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=144, metadata={"Software": None})
    aside = path.with_name(f"{PARTIAL}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content.getvalue())
        aside.rename(path)
    except OSError as error:
        raise cannot_write(error, f"{path}") from error
