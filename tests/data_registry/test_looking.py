"""Pages and pictures of a registry: complete, self-contained, and of the right slices."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from core_mri.__main__ import main
from core_mri.errors import CoreMRIError
from data_registry import Registry
from data_registry.looking.contact_sheets import _sheet, write_sheets
from data_registry.looking.statistics_page import statistics_page


class TestStatisticsPage:
    def test_holds_the_counts_and_loads_nothing(self, registry: Registry, tmp_path: Path) -> None:
        words = ["data", "stats", "--registry", str(registry.path)]
        assert main([*words, "--html", str(tmp_path / "page.html")]) == 0
        page = (tmp_path / "page.html").read_text()
        assert "8 images (0 synthetic) with 32 slices of 7 patients; 6 label maps" in page
        for name in ("brain", "knee", "prostate", "siemens", "3.0 T", "CC0-1.0"):
            assert name in page
        assert not re.search(r'(src|href)="(?!data:|#)', page)

    def test_names_nobody(self, registry: Registry) -> None:
        page = statistics_page(registry).html()
        assert not any(row.subject_id in page for row in registry.volumes())

    def test_empty_registry(self, tmp_path: Path) -> None:
        page = statistics_page(Registry.create(tmp_path / "reg")).html()
        assert "0 images" in page


class TestContactSheets:
    def test_slices_windows_and_letters_are_those_of_the_catalogue(
        self, registry: Registry
    ) -> None:
        rows = registry.volumes("role = 'image'")[:2]
        figure = _sheet(registry, rows, 3)
        shown = [axes for axes in figure.axes if axes.images]
        assert len(shown) == 6
        for number, row in enumerate(rows):
            for place, index in enumerate((0, 2, 3)):
                axes = shown[3 * number + place]
                expected = registry.read_slice(row, index)
                np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), expected)
                assert axes.images[0].get_clim() == pytest.approx((row.window_low, row.window_high))
                letters = [text.get_text() for text in axes.texts]
                sides = {"axial": ["R", "L"], "coronal": ["R", "L"], "sagittal": ["A", "P"]}
                assert letters == sides[row.plane]

    @pytest.mark.parametrize("suffix", ["png", "html"])
    def test_files(self, registry: Registry, tmp_path: Path, suffix: str, capsys) -> None:
        out = tmp_path / "sub" / f"sheet.{suffix}"
        words = ["data", "inspect", "--registry", str(registry.path), "--out", str(out)]
        assert main([*words, "--limit", "5", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"shown": 5, "volumes": 14, "out": str(out)}
        content = out.read_bytes()
        assert content.startswith(b"\x89PNG" if suffix == "png" else b"<!")
        assert [p.name for p in out.parent.iterdir()] == [out.name]

    def test_pictures_share_rows_and_have_no_made_up_sides(
        self, tmp_path: Path, run_ingest
    ) -> None:
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 48), dtype=np.uint8)
        for number, image in enumerate(pixels):
            (tmp_path / "in" / f"p{number}").mkdir(parents=True)
            Image.fromarray(image).save(tmp_path / "in" / f"p{number}" / "a.png")
        source = {"spacing_mm": (0.5, 0.5, 3.0), "role": "image"}
        run_ingest(tmp_path / "reg", tmp_path / "in", source=source)
        pictures = Registry.open(tmp_path / "reg")
        figure = _sheet(pictures, pictures.volumes(), 6)
        assert len(figure.axes) == 3
        assert len({round(axes.get_position().y0, 3) for axes in figure.axes}) == 1
        assert not any(axes.texts for axes in figure.axes)

    def test_refusals(self, registry: Registry, tmp_path: Path) -> None:
        with pytest.raises(CoreMRIError, match="CONFIG-01"):
            write_sheets(registry, tmp_path / "sheet.pdf")
        with pytest.raises(CoreMRIError, match="DATA-09"):
            write_sheets(registry, tmp_path / "sheet.png", where="region = 'toe'")
        words = ["data", "inspect", "--registry", str(registry.path), "--out"]
        assert main([*words, str(tmp_path / "a.png"), "--slices", "0"]) == 2
