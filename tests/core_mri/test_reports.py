"""Tests of core_mri.reports."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from core_mri.errors import DataError
from core_mri.pictures import overlay
from core_mri.plots import curves
from core_mri.reports import Report
from core_mri.version import __version__

HOSTILE = "<script>alert('x')</script> & \"quoted\" <img src=https://example.org/x>"
VOID = {"meta", "img"}
REFERENCES = {"href", "src", "srcset", "action", "data", "poster", "xlink:href", "formaction"}


class Page(HTMLParser):
    """Checks that tags nest and close; collects what the tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [text for inside, text in self.text if inside == tag]


def full_report(text: str = "plain") -> Report:
    """A report with every kind of block, `text` in every place that takes one."""
    report = Report(text, text, text)
    report.add_text(text, [text, text])
    report.add_facts("Facts", {text: text, "count": 12345, "yes": True, "share": 0.25})
    report.add_table("Table", [{text: text, "score": 0.5}, {"score": math.nan}], text)
    report.add_figure("Figure", curves({text: ([0, 1], [1, 2])}, text, text), text, alt=text)
    image = np.arange(64.0).reshape(8, 8)
    report.add_gallery("Gallery", [(overlay(image, image > 40), text)])
    return report


def table_bytes(page: Page) -> bytes:
    (link,) = [a for a in page.all("a") if "download" in a]
    head, content = link["href"].split(",")
    assert head == "data:text/csv;charset=utf-8;base64"
    return base64.b64decode(content)


class TestPage:
    def test_tags_nest_and_parts_are_there(self) -> None:
        page = Page(full_report().html())
        assert page.texts("title") == page.texts("h1") == ["plain"]
        assert page.texts("h2") == []  # each heading is a link to itself
        assert page.all("html") == [{"lang": "en"}]
        footer = " ".join(page.texts("p"))
        assert f"core-mri {__version__}" in footer
        assert "Research use only; not a medical device." in footer

    def test_contents_lead_to_unique_anchors(self) -> None:
        report = Report("t", "v")
        for heading in ("Results", "results!", "<>", "Results"):
            report.add_text(heading, "text")
        page = Page(report.html())
        anchors = [h["id"] for h in page.all("h2")]
        assert anchors == ["results", "results-2", "section"]
        assert [a["href"] for a in page.all("a")[:3]] == [f"#{anchor}" for anchor in anchors]

    def test_blocks_of_one_heading_make_one_section(self) -> None:
        report = Report("t", "v")
        report.add_text("A", "first")
        report.add_text("B", "second")
        report.add_text("A", ["third", "fourth"])
        paragraphs = Page(report.html()).texts("p")
        assert paragraphs[1:5] == ["first", "third", "fourth", "second"]

    def test_an_empty_report_is_a_page(self) -> None:
        page = Page(Report("t", "v").html())
        assert page.all("section") == page.all("nav") == []

    def test_same_input_same_bytes(self) -> None:
        assert full_report().html() == full_report().html()


class TestHostileText:
    def test_text_stays_text_everywhere(self) -> None:
        html = full_report(HOSTILE).html()
        page = Page(html)
        assert page.all("script") == []
        assert all(image["src"].startswith("data:image/") for image in page.all("img"))
        assert page.texts("h1") == [HOSTILE]
        assert HOSTILE in page.texts("td") + page.texts("th")
        assert HOSTILE in page.texts("dt")
        assert HOSTILE in page.texts("figcaption")
        assert HOSTILE in [image["alt"] for image in page.all("img")]

    def test_nothing_is_loaded_from_anywhere(self) -> None:
        page = Page(full_report(HOSTILE).html())
        values = [
            value
            for _, attributes in page.tags
            for name, value in attributes.items()
            if name in REFERENCES
        ]
        assert len(values) >= 8
        assert all(value.startswith(("#", "data:")) for value in values)
        assert not re.search(r"url\(|@import|https?://", full_report().html())

    def test_a_policy_forbids_loading_and_scripts(self) -> None:
        (policy,) = [m for m in Page(full_report().html()).all("meta") if "http-equiv" in m]
        assert policy["content"].startswith("default-src 'none'; img-src data:")

    def test_csv_runs_no_formula(self) -> None:
        report = Report("t", "v")
        report.add_table("T", [{"=name": "=1+1", "number": -1.5}])
        rows = list(csv.reader(io.StringIO(table_bytes(Page(report.html())).decode())))
        assert rows == [["'=name", "number"], ["'=1+1", "-1.5"]]


class TestTable:
    def test_shown_rounded_and_downloaded_in_full(self) -> None:
        report = Report("t", "v")
        rows: list[dict[str, str | int | float | bool | None]] = [
            {"task": "knee, left", "mean": 0.8123456, "n": 1200, "p": 1.24e-5, "ok": True},
            {"task": "brain", "mean": math.nan, "n": 3, "p": None, "ok": False, "note": "few"},
        ]
        report.add_table("Scores", rows, "All scores")
        page = Page(report.html())
        assert page.texts("th")[:6] == ["task", "mean", "n", "p", "ok", "note"]
        assert page.texts("th")[6:] == ["knee, left", "brain"]
        dash = "\u2013"
        assert page.texts("td") == [
            *("0.812", "1,200", "1.2e-05", "yes", dash),
            *(dash, "3", dash, "no", "few"),
        ]
        read = list(csv.DictReader(io.StringIO(table_bytes(page).decode())))
        assert read[0] == {
            "task": "knee, left",
            "mean": "0.8123456",
            "n": "1200",
            "p": "1.24e-05",
            "ok": "True",
            "note": "",
        }
        assert read[1]["mean"] == read[1]["p"] == ""

    def test_numbers_are_set_right_and_first_text_column_heads_its_row(self) -> None:
        report = Report("t", "v")
        report.add_table("T", [{"task": "knee", "mean": 0.5, "ok": True}], download_csv=False)
        page = Page(report.html())
        assert page.all("th") == [
            {"scope": "col"},
            {"scope": "col", "class": "number"},
            {"scope": "col"},
            {"scope": "row"},
        ]
        assert page.all("td") == [{"class": "number"}, {}]
        assert not [a for a in page.all("a") if "download" in a]

    def test_tables_of_one_section_download_under_different_names(self) -> None:
        report = Report("t", "v")
        for _ in range(2):
            report.add_table("My scores", [{"a": 1}])
        names = [a["download"] for a in Page(report.html()).all("a") if "download" in a]
        assert names == ["my-scores.csv", "my-scores-2.csv"]


class TestFigures:
    def test_curves_are_svg_scans_are_png_at_twice_the_size(self) -> None:
        curve, scan = Page(full_report().html()).all("img")
        assert curve["src"].startswith("data:image/svg+xml;base64,")
        svg = base64.b64decode(curve["src"].split(",")[1])
        assert b"<svg" in svg
        png = base64.b64decode(scan["src"].split(",")[1])
        assert png.startswith(b"\x89PNG")
        assert abs(int.from_bytes(png[16:20], "big") - 2 * int(scan["width"])) <= 1
        assert abs(int.from_bytes(png[20:24], "big") - 2 * int(scan["height"])) <= 1

    def test_a_curve_of_very_many_points_is_png(self) -> None:
        y = np.random.default_rng(0).normal(size=30_000)
        report = Report("t", "v")
        report.add_figure("F", curves({"a": (np.arange(30_000), y)}, "x", "y"), "caption")
        (image,) = Page(report.html()).all("img")
        assert image["src"].startswith("data:image/png;base64,")
        assert image["alt"] == "caption"


class TestWrite:
    def test_folder_is_made_and_nothing_is_left_aside(self, tmp_path: Path) -> None:
        report = full_report()
        path = report.write(tmp_path / "new" / "report.html")
        assert path.read_text(encoding="utf-8") == report.html()
        assert [p.name for p in path.parent.iterdir()] == ["report.html"]

    def test_failure_is_a_data_error_and_keeps_the_old_report(self, tmp_path: Path) -> None:
        path = Report("old", "v").write(tmp_path / "report.html")
        old = path.read_bytes()
        (tmp_path / ".report.html.part").mkdir()  # in the way of the new one
        with pytest.raises(DataError, match=r"report\.html cannot be written: .+\.") as caught:
            Report("new", "v").write(path)
        assert caught.value.code == "DATA-07"
        assert path.read_bytes() == old

    def test_a_file_in_place_of_the_folder_is_a_data_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(DataError, match="DATA-07"):
            Report("t", "v").write(tmp_path / "file" / "report.html")
