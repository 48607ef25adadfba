"""Dataset card and Croissant: valid, true to the catalogue, and frank about what is not known."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from core_mri.__main__ import main
from core_mri.errors import ConfigError, DataError
from data_registry import Registry
from data_registry.cohorts import freeze
from data_registry.governance.audit_log import verify
from data_registry.governance.dataset_card import NAMES, write_card
from data_registry.governance.withdrawal import WithdrawConfig, withdraw


@pytest.fixture
def path(registry: Registry, tmp_path: Path) -> Path:
    """A copy, as cards are noted in the registry."""
    return Path(shutil.copytree(registry.path, tmp_path / "reg"))


@pytest.fixture
def out(path: Path, tmp_path: Path) -> Path:
    write_card(Registry.open(path), tmp_path / "card")
    return tmp_path / "card"


class TestCroissant:
    def test_mlcroissant_finds_nothing_wrong(self, out: Path) -> None:
        mlcroissant = pytest.importorskip("mlcroissant")
        metadata = mlcroissant.Metadata.from_json(
            mlcroissant.Metadata(name="x").ctx, json.loads((out / "croissant.json").read_text())
        )
        assert list(metadata.issues.errors) == []
        document = json.loads((out / "croissant.json").read_text())
        assert document["conformsTo"][0] == "http://mlcommons.org/croissant/1.1"

    def test_and_would_find_it(self, out: Path) -> None:
        mlcroissant = pytest.importorskip("mlcroissant")
        document = json.loads((out / "croissant.json").read_text())
        del document["distribution"][0]["contentUrl"]
        with pytest.raises(mlcroissant.ValidationError, match="contentUrl"):
            mlcroissant.Metadata.from_json(mlcroissant.Metadata(name="x").ctx, document)

    def test_its_records_are_the_catalogue(self, out: Path, path: Path) -> None:
        mlcroissant = pytest.importorskip("mlcroissant")
        dataset = mlcroissant.Dataset(jsonld=out / "croissant.json")
        rows = {row.volume_id: row for row in Registry.open(path).volumes()}
        records = list(dataset.records("volumes"))
        assert len(records) == len(rows) == 14
        for record in records:
            row = rows[record["volumes/volume_id"].decode()]
            assert record["volumes/region"].decode() == row.region
            assert record["volumes/num_slices"] == row.num_slices
        slices = list(dataset.records("slices"))
        assert len(slices) == sum(row.num_slices for row in rows.values())

    def test_hashes_are_those_of_the_files(self, out: Path, path: Path) -> None:
        document = json.loads((out / "croissant.json").read_text())
        files = [f for f in document["distribution"] if f["@type"] == "cr:FileObject"]
        assert len(files) == 2 + len(list((path / "shards").iterdir()))
        for file in files:
            folder = path if file["contentUrl"].startswith("shards/") else out
            content = (folder / file["contentUrl"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
            assert file["contentSize"] == f"{len(content)} B"


class TestReadme:
    def test_front_matter_and_sections(self, out: Path) -> None:
        _, front, text = (out / "README.md").read_text().split("---\n", 2)
        assert yaml.safe_load(front) == {
            "license": "cc0-1.0", "pretty_name": "reg", "size_categories": ["n<1K"],
            "tags": ["mri", "medical-imaging", "croissant"],
        }  # fmt: skip
        for heading in ("Composition", "Collection and consent", "De-identification", "Licences",
                        "Splits", "Maintenance", "Known limits", "Citation"):  # fmt: skip
            assert f"\n## {heading}\n" in text
        assert "14 volumes" in text
        assert "## Motivation\n\nNot known" in text
        assert "ethics and consent not stated" in text
        assert "| brain | 7 |" in text

    def test_a_cohort_that_lost_a_patient_says_so(self, path: Path, tmp_path: Path) -> None:
        registry = Registry.open(path)
        before = freeze(registry, "knees", "region = 'knee'").digest
        subject = registry.volumes("region = 'knee'")[0].subject_id
        withdraw(registry, WithdrawConfig(subject=subject))
        write_card(registry, tmp_path / "card", cohort="knees")
        text = (tmp_path / "card" / "README.md").read_text()
        assert before in text
        assert "withdrawn from the registry so far: 1." in text
        assert "| brain |" not in text
        everything = b"".join(p.read_bytes() for p in (tmp_path / "card").iterdir())
        assert subject.encode() not in everything

    def test_several_licences(self, path: Path, tmp_path: Path, run_ingest, save) -> None:
        save(tmp_path / "x" / "patient77" / "knee_T1.nii.gz", "knee", 77)
        run_ingest(path, tmp_path / "x", source={"name": "b|c", "licence": "CC-BY-NC-4.0"})
        write_card(Registry.open(path), tmp_path / "card")
        text = (tmp_path / "card" / "README.md").read_text()
        assert 'license_name: "CC-BY-NC-4.0 AND CC0-1.0"' in text
        assert "No commercial use." in text


class TestCommand:
    def test_writes_and_is_in_the_audit_log(
        self, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["data", "card", "--registry", str(path), "--out", str(tmp_path / "card")]
        assert main(words) == 0
        assert main(words) == 0  # over an earlier one
        assert "14 volumes" in capsys.readouterr().out
        assert sorted(p.name for p in (tmp_path / "card").iterdir()) == sorted(NAMES)
        assert [e.verb for e in verify(path).entries][-2:] == ["card", "card"]

    def test_refused(self, path: Path, tmp_path: Path) -> None:
        registry = Registry.open(path)
        with pytest.raises(ConfigError, match="CONFIG-03"):
            write_card(registry, path)
        with pytest.raises(ConfigError, match="CONFIG-02"):
            write_card(registry, tmp_path / "card", cohort="none")
        empty = Registry.create(tmp_path / "empty")
        with pytest.raises(DataError, match="DATA-09"):
            write_card(empty, tmp_path / "card")
        assert not (tmp_path / "card").exists()
