"""`Report`: titled sections of text, tables and figures, written as one self-contained HTML file.

The page loads nothing from anywhere, runs no script, and the same sections give the same bytes.
Every string is escaped: headings, cells and captions may come from file headers.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.errors import DataError
from core_mri.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | bool | None
"""A table cell; None and nan are shown as a dash."""

_DASH = "\u2013"
_MAX_SVG_BYTES = 150_000
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class _Text:
    paragraphs: tuple[str, ...]
    kind: str = "text"


@dataclass(frozen=True)
class _Facts:
    pairs: tuple[tuple[str, str], ...]
    kind: str = "facts"


@dataclass(frozen=True)
class _Table:
    columns: tuple[tuple[str, bool], ...]
    """Name, and whether the column holds numbers."""
    rows: tuple[tuple[str, ...], ...]
    caption: str
    csv_uri: str
    csv_name: str
    folded: bool
    kind: str = "table"


@dataclass(frozen=True)
class _Picture:
    uri: str
    width: int
    height: int
    caption: str
    alt: str


@dataclass(frozen=True)
class _Pictures:
    pictures: tuple[_Picture, ...]
    kind: str
    """``"figure"`` (one, full width) or ``"gallery"`` (a grid)."""


@dataclass
class _Section:
    heading: str
    anchor: str
    blocks: list[_Text | _Facts | _Table | _Pictures] = field(default_factory=list)


class Report:
    """A page that opens with its verdict and proves it section by section.

    Blocks added under the heading of an earlier section continue that section.

    Args:
        title: What was studied.
        verdict: The answer, one or two sentences.
        subtitle: A line under the title, such as the run's folder name and date.
    """

    def __init__(self, title: str, verdict: str, subtitle: str = "") -> None:
        self.title = title
        self.verdict = verdict
        self.subtitle = subtitle
        self._sections: dict[str, _Section] = {}

    def add_text(self, heading: str, paragraphs: str | Sequence[str]) -> None:
        """Add paragraphs; plain text, not HTML."""
        texts = (paragraphs,) if isinstance(paragraphs, str) else tuple(paragraphs)
        self._section(heading).blocks.append(_Text(texts))

    def add_facts(self, heading: str, facts: Mapping[str, Cell]) -> None:
        """Add names with their values, such as settings and versions."""
        pairs = tuple((name, _shown(value)) for name, value in facts.items())
        self._section(heading).blocks.append(_Facts(pairs))

    def add_table(
        self,
        heading: str,
        rows: Sequence[Mapping[str, Cell]],
        caption: str = "",
        *,
        download_csv: bool = True,
        folded: bool = False,
    ) -> None:
        """Add a table; columns are the keys of all rows in order of first appearance.

        Args:
            heading: Of the section.
            rows: One mapping per row. Shown floats are rounded to 3 decimals (below 0.001 to 2
                significant digits).
            caption: What the table says, shown above it.
            download_csv: Add a link to the same rows as CSV, with all digits.
            folded: Show the caption alone until a reader opens it.
        """
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = tuple((name, _is_numeric([row.get(name) for row in rows])) for name in names)
        shown = tuple(tuple(_shown(row.get(name)) for name in names) for row in rows)
        section = self._section(heading)
        num_tables = sum(isinstance(block, _Table) for block in section.blocks)
        name = section.anchor + (f"-{num_tables + 1}" if num_tables else "")
        uri = _data_uri("text/csv;charset=utf-8", _csv(names, rows)) if download_csv else ""
        section.blocks.append(_Table(columns, shown, caption, uri, f"{name}.csv", folded))

    def add_figure(self, heading: str, figure: Figure, caption: str, alt: str = "") -> None:
        """Add a figure at its own size.

        Args:
            heading: Of the section.
            figure: Drawn now: later changes to it do not show.
            caption: What the figure shows and says.
            alt: What a reader who cannot see it should know; the caption if empty.
        """
        picture = _picture(figure, caption, alt)
        self._section(heading).blocks.append(_Pictures((picture,), "figure"))

    def add_gallery(self, heading: str, pictures: Sequence[tuple[Figure, str]]) -> None:
        """Add small figures, each with its caption, as a grid."""
        drawn = tuple(_picture(figure, caption) for figure, caption in pictures)
        self._section(heading).blocks.append(_Pictures(drawn, "gallery"))

    def html(self) -> str:
        """The page."""
        import jinja2

        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        source = resources.files("core_mri").joinpath("assets/report.html.jinja")
        return environment.from_string(source.read_text(encoding="utf-8")).render(
            title=self.title,
            subtitle=self.subtitle,
            verdict=self.verdict,
            sections=list(self._sections.values()),
            version=__version__,
        )

    def write(self, path: Path) -> Path:
        """Write the page aside and rename it into place, making its folder if needed.

        Returns:
            `path`.

        Raises:
            DataError: DATA-07 when the file cannot be written.
        """
        page = self.html()
        aside = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(page, encoding="utf-8", newline="\n")
            aside.replace(path)
        except OSError as error:
            raise DataError(
                "DATA-07",
                f"the report {path} cannot be written: {error.strerror or error}.",
                fix="Free some space or choose another output folder.",
            ) from error
        return path

    def _section(self, heading: str) -> _Section:
        if heading not in self._sections:
            slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
            taken = {section.anchor for section in self._sections.values()}
            anchor, number = slug, 1
            while anchor in taken:
                number += 1
                anchor = f"{slug}-{number}"
            self._sections[heading] = _Section(heading, anchor)
        return self._sections[heading]


def _is_numeric(cells: Sequence[Cell]) -> bool:
    given = [cell for cell in cells if cell is not None]
    return bool(given) and all(
        isinstance(cell, int | float) and not isinstance(cell, bool) for cell in given
    )


def _shown(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return _DASH
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:.1e}" if 0 < abs(cell) < 0.001 else f"{cell:,.3f}"
    return cell


def _csv(names: Sequence[str], rows: Sequence[Mapping[str, Cell]]) -> bytes:
    """UTF-8 with all digits; missing and nan cells are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_inert(name) for name in names])
    for row in rows:
        cells = [row.get(name) for name in names]
        writer.writerow(
            [
                "" if cell != cell else _inert(cell) if isinstance(cell, str) else cell
                for cell in cells
            ]
        )
    return text.getvalue().encode()


def _inert(text: str) -> str:
    """Text a spreadsheet will not run as a formula (OWASP, CSV injection)."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _picture(figure: Figure, caption: str, alt: str = "") -> _Picture:
    """SVG when small and free of scans, else PNG at twice the screen's resolution."""
    from matplotlib import rc_context

    width, height = figure.get_size_inches() * 96  # CSS pixels per inch
    image = io.BytesIO()
    kind = "svg+xml"
    has_scans = any(axes.images for axes in figure.axes)
    if not has_scans:
        # The salt and the missing date make equal figures equal bytes.
        with rc_context({"svg.hashsalt": "core-mri", "svg.fonttype": "path"}):
            figure.savefig(image, format="svg", metadata={"Date": None, "Creator": None})
    if has_scans or image.tell() > _MAX_SVG_BYTES:
        image, kind = io.BytesIO(), "png"
        figure.savefig(image, format="png", dpi=192, metadata={"Software": None})
    uri = _data_uri(f"image/{kind}", image.getvalue())
    return _Picture(uri, round(width), round(height), caption, alt or caption)


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
