"""A public release: refused without the review of what was de-identified for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from core_mri.__main__ import main as core_mri
from core_mri.errors import ConfigError, CoreMRIError, DataError
from data_registry import Registry
from data_registry.deidentify.cli import main as deidentify
from data_registry.deidentify.ledger import Draw, Ledger
from data_registry.deidentify.review_items import items_of
from data_registry.export import ExportConfig, ExportReport, export
from tests.data_registry.burned_text import write_series
from tests.data_registry.test_deid_burned_in import phantom

pytest.importorskip("rapidocr")
pytest.importorskip("pydeface")


@pytest.fixture
def clean(tmp_path: Path, key_file: Path) -> Path:
    """Three knees, de-identified for the public, and nobody has looked at them."""
    for number in range(3):
        write_series(
            phantom(slices=4) + number, tmp_path / "in" / str(number), str(number),
            BodyPartExamined="KNEE", PatientID=f"88{number}213377", PatientName="Zqxvwk^Anna",
        )  # fmt: skip
    words = [str(tmp_path / "in"), str(tmp_path / "clean"), "--key-file", str(key_file)]
    assert deidentify([*words, "--release", "public", "--jobs", "1"]) == 0
    return tmp_path / "clean"


@pytest.fixture
def registry(clean: Path, tmp_path: Path, run_ingest: Callable[..., object]) -> Registry:
    run_ingest(tmp_path / "reg", clean)
    return Registry.open(tmp_path / "reg")


def look(folder: Path, verdict: str = "pass", draw: Draw | None = None) -> None:
    draw = draw or Draw()
    ledger = Ledger.open(folder)
    for item in items_of(folder, draw):
        ledger.add(item.name, item.seen, verdict, "ab", draw)


def release(registry: Registry, key_file: Path, *folders: Path, where: str = "") -> ExportReport:
    config = ExportConfig(
        registry=registry.path, out=registry.path.parent / "public", format="nifti", where=where,
        release="public", reviewed=folders, key_file=key_file,
    )  # fmt: skip
    return export(config)


def refused(registry: Registry, key_file: Path, *folders: Path) -> str:
    with pytest.raises(DataError, match="DATA-19") as caught:
        release(registry, key_file, *folders)
    assert not (registry.path.parent / "public").exists()
    return caught.value.message


def test_after_the_review(registry: Registry, clean: Path, key_file: Path) -> None:
    look(clean)
    assert release(registry, key_file, clean).written == 3


def test_before_it(registry: Registry, clean: Path, key_file: Path) -> None:
    assert "nobody has looked" in refused(registry, key_file, clean)
    assert "3 of 3 volumes (source phantoms)" in refused(registry, key_file)


@pytest.mark.parametrize("verdict", ["fail", "unsure"])
def test_one_item_that_did_not_pass(
    registry: Registry, clean: Path, key_file: Path, verdict: str
) -> None:
    look(clean)
    item = items_of(clean, Draw())[1]
    Ledger.open(clean).add(item.name, item.seen, verdict, "cd", Draw())
    assert "2 passed, 0 were not looked at" in refused(registry, key_file, clean)


def test_a_smaller_sample_is_not_enough(registry: Registry, clean: Path, key_file: Path) -> None:
    look(clean, draw=Draw(sample=1, seed=7))
    assert "sample 30, seed 7) 1 passed, 2 were not" in refused(registry, key_file, clean)
    look(clean, draw=Draw(sample=30, seed=7))
    assert release(registry, key_file, clean).written == 3


def test_a_file_that_changed_after_the_review(
    registry: Registry, clean: Path, key_file: Path, run_ingest: Callable[..., object]
) -> None:
    look(clean)
    path = sorted(clean.rglob("*.dcm"))[0]
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array.copy()
    pixels[5, 5] += 1
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path)
    assert "1 of 3" in refused(registry, key_file, clean)
    run_ingest(registry.path, clean)
    assert "1 of 3" in refused(Registry.open(registry.path), key_file, clean)


def test_volumes_from_elsewhere(
    registry: Registry, clean: Path, key_file: Path, tmp_path: Path, run_ingest, save
) -> None:
    look(clean)
    save(tmp_path / "more" / "patient1" / "knee_T1.nii.gz", "knee", 0)
    run_ingest(registry.path, tmp_path / "more", source={"name": "more"})
    both = Registry.open(registry.path)
    assert "1 of 4 volumes (source more)" in refused(both, key_file, clean)
    assert release(both, key_file, clean, where="source = 'phantoms'").written == 3


def test_a_folder_that_was_not_made_for_it(tmp_path: Path, key_file: Path, run_ingest) -> None:
    write_series(phantom(slices=4), tmp_path / "in", "a", BodyPartExamined="KNEE")
    out = tmp_path / "clean"
    assert deidentify([str(tmp_path / "in"), str(out), "--key-file", str(key_file)]) == 0
    run_ingest(tmp_path / "reg", out)
    look(out)
    with pytest.raises(ConfigError, match=r"CONFIG-05.*pixels skip, faces keep"):
        release(Registry.open(tmp_path / "reg"), key_file, out)


def test_another_key(registry: Registry, clean: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    other.touch(mode=0o600)
    other.write_text("ab" * 32)
    with pytest.raises(CoreMRIError, match="another key"):
        release(registry, other, clean)


def test_command(
    registry: Registry, clean: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = registry.path.parent / "public"
    words = ["data", "export", "nifti", "--registry", str(registry.path), "--out", str(out)]
    words += ["--release", "public", "--reviewed", str(clean), "--key-file", str(key_file)]
    assert core_mri(words) == 1
    told = capsys.readouterr().err
    assert "DATA-19: nobody has looked" in told
    assert "core-mri data review" in told
    look(clean)
    assert core_mri(words) == 0
