"""A page for readers: real and synthetic slices, shuffled; it ships unfilled.

``reader.html`` shows numbered slices, ``reader_answers.csv`` waits for ``real`` or ``synthetic`` in
its second column, ``reader_key.csv`` is opened afterwards. Nobody's answers are invented here.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core_mri.errors import DataError
from core_mri.metrics.intervals import Interval, bootstrap_statistic
from core_mri.pictures import contact_sheet
from core_mri.reports import Report
from core_mri.runs import write_atomically
from downstream.cohort import read_image

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

PAGE, ANSWERS, KEY = "reader.html", "reader_answers.csv", "reader_key.csv"
_MIDDLE = (0.3, 0.7)
"""Part of a volume that slices are drawn from."""


@dataclass(frozen=True)
class Reading:
    """How well a reader told them apart."""

    accuracy: Interval
    answered: int


def write_reader_page(
    registry: Registry,
    real: Sequence[VolumeRow],
    synthetic: Sequence[VolumeRow],
    out: Path,
    *,
    count: int,
    seed: int,
) -> None:
    """Write the page, an empty answer sheet unless there is one, and the key.

    Args:
        registry: Where voxels are.
        real: Image volumes of patients.
        synthetic: Generated ones.
        out: Folder.
        count: Slices, half of them real; fewer where there are fewer volumes.
        seed: Of draw and order.
    """
    rng = np.random.default_rng(seed)
    half = min(count // 2, len(real), len(synthetic))
    shown = []
    for kind, rows in (("real", real), ("synthetic", synthetic)):
        for number in rng.choice(len(rows), half, replace=False):
            images = read_image(registry, rows[number])
            place = int(rng.uniform(*_MIDDLE) * len(images))
            shown.append((kind, rows[number], place, images[place]))
    order = rng.permutation(len(shown))
    report = Report(
        "Real or synthetic?",
        f"Half of these {len(shown)} slices are of patients, half were made by a program. Write "
        f"real or synthetic beside each number in {ANSWERS}, before anybody opens {KEY}.",
        out.name,
    )
    pictures = []
    for place, number in enumerate(order, start=1):
        figure = contact_sheet([shown[number][3]], columns=1, windows=[(0.0, 1.0)])
        pictures.append((figure, f"{place}"))
    report.add_gallery("Slices", pictures)
    report.write(out / PAGE)
    key = [(place, shown[i][0], shown[i][1].volume_id, shown[i][2])
           for place, i in enumerate(order, start=1)]  # fmt: skip
    _write(out / KEY, ("number", "kind", "volume", "slice"), key)
    if not (out / ANSWERS).exists():
        _write(out / ANSWERS, ("number", "answer"), [(place, "") for place, *_ in key])


def read_answers(out: Path, seed: int) -> Reading | None:
    """What a reader answered; None while the sheet is empty.

    Raises:
        DataError: DATA-31 when an answer is neither real nor synthetic.
    """
    if not (out / ANSWERS).exists():
        return None
    answers, key = ({row["number"]: row for row in _read(out / name)} for name in (ANSWERS, KEY))
    given = {n: row["answer"].strip().lower() for n, row in answers.items() if row["answer"]}
    if strange := sorted(set(given.values()) - {"real", "synthetic"}):
        raise DataError(
            "DATA-31", f"{out / ANSWERS}: answers are real or synthetic, not {strange}."
        )
    if not given:
        return None
    right = np.array([answer == key[n]["kind"] for n, answer in given.items()], dtype=float)
    accuracy = bootstrap_statistic(lambda c: c @ right / c.sum(1), len(right), seed=seed)
    return Reading(accuracy, len(right))


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    write_atomically(path, text.getvalue().encode())
