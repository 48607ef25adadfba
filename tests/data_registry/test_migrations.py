"""Older registries become this schema, whole or not at all; many commits become few."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from core_mri.errors import ConfigError, DataError
from data_registry import Registry, SliceDataset
from data_registry.commits import commit, sole_writer, sweep
from data_registry.compaction import merge_commits
from data_registry.repair import repair
from data_registry.schema import SplitRow
from data_registry.source_cards import CardFacts
from data_registry.views import commit_folders
from tests.data_registry.kill_ingest import fingerprint

NEW = {
    "volumes": ["coils", "payload", "scale", "codec", "percentiles"],
    "slices": ["checksum"],
}
"""Columns that came with schema 2, beside the tables sources and shards."""


def as_schema_1(path: Path) -> None:
    """Take away what schema 1 did not have: there the voxels were the payload, as here."""
    for folder in (path / "commits").iterdir():
        for name, columns in NEW.items():
            file = folder / f"{name}.parquet"
            if file.is_file():
                older = pyarrow.parquet.read_table(file).drop_columns(columns)
                pyarrow.parquet.write_table(older, file)
        for name in ("sources", "shards"):
            (folder / f"{name}.parquet").unlink(missing_ok=True)
    content = json.loads((path / "registry.json").read_text())
    (path / "registry.json").write_text(json.dumps({**content, "schema": 1}))


@pytest.fixture(params=["bitshuffle-lz4", "none"])
def registry_2(request, tmp_path: Path, run_ingest, save) -> Registry:
    """Three commits: images whose voxels are their payload, one of them replaced by another."""
    folder = tmp_path / "in"
    for subject in range(3):
        save(folder / f"patient{subject}" / "knee_T1.nii.gz", "knee", subject)
        run_ingest(tmp_path / "reg", folder, compression=request.param)
    save(folder / "patient1" / "knee_T1.nii.gz", "knee", 7)
    run_ingest(tmp_path / "reg", folder, compression=request.param)
    return Registry.open(tmp_path / "reg")


class TestFromSchema1:
    def test_everything_is_as_if_ingested_today(self, registry_2: Registry, tmp_path: Path) -> None:
        old = Path(shutil.copytree(registry_2.path, tmp_path / "old"))
        as_schema_1(old)
        migrated = Registry.open(old)
        assert json.loads((old / "registry.json").read_text())["schema"] == 3
        assert migrated.volumes() == registry_2.volumes()
        for table in ("slices", "shards", "files", "splits"):
            columns = "* EXCLUDE (commit)"
            query = f"SELECT {columns} FROM {table} ORDER BY ALL"
            used = "SELECT DISTINCT shard FROM volumes"
            if table == "shards":
                query = f"SELECT {columns} FROM shards WHERE shard IN ({used}) ORDER BY ALL"
            assert migrated.sql(query).equals(registry_2.sql(query)), table
        assert migrated.sql("SELECT source, licence FROM sources").to_pylist() == [
            {"source": "phantoms", "licence": "CC0-1.0"}
        ]
        assert repair(migrated).lost == {}
        slices = SliceDataset(migrated, split=("train", "val", "test"), min_foreground=0)
        assert len([slices.read(i) for i in range(len(slices))]) == 12

    def test_and_takes_the_next_ingest(
        self, registry_2: Registry, tmp_path: Path, run_ingest, save
    ) -> None:
        as_schema_1(registry_2.path)
        save(tmp_path / "in" / "patient5" / "knee_T1.nii.gz", "knee", 5)
        report = run_ingest(registry_2.path, tmp_path / "in")
        assert (report.volumes_added, report.files_known) == (1, 3)
        assert len(Registry.open(registry_2.path).volumes()) == 4

    def test_interrupted_at_the_end_goes_on(
        self, registry_2: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = fingerprint(registry_2.path)
        as_schema_1(registry_2.path)

        def killed(_: Registry) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Registry, "save_info", killed)
            with pytest.raises(KeyboardInterrupt):
                Registry.open(registry_2.path)
        assert json.loads((registry_2.path / "registry.json").read_text())["schema"] == 1
        found = fingerprint(registry_2.path)
        assert {k: v for k, v in found.items() if k != "loose files"} == {
            k: v for k, v in expected.items() if k != "loose files"
        }

    def test_a_missing_shard_leaves_it_as_it_was(self, registry_2: Registry) -> None:
        row = registry_2.volumes()[0]
        as_schema_1(registry_2.path)
        (registry_2.path / "shards" / row.shard).unlink()
        before = {p: p.read_bytes() for p in registry_2.path.rglob("*.parquet")}
        with pytest.raises(DataError, match=row.shard):
            Registry.open(registry_2.path)
        assert {p: p.read_bytes() for p in registry_2.path.rglob("*.parquet")} == before


def as_schema_2(path: Path) -> None:
    """Take away what schema 2 did not have: the cards of sources."""
    for file in (path / "commits").glob("*/sources.parquet"):
        older = pyarrow.parquet.read_table(file).drop_columns(["card"])
        pyarrow.parquet.write_table(older, file)
    content = json.loads((path / "registry.json").read_text())
    (path / "registry.json").write_text(json.dumps({**content, "schema": 2}))


class TestFromSchema2:
    CARDS = "SELECT source, card FROM sources ORDER BY source"

    def test_sources_have_no_card(self, registry_2: Registry, tmp_path: Path) -> None:
        old = Path(shutil.copytree(registry_2.path, tmp_path / "old"))
        as_schema_2(old)
        before = {p: p.read_bytes() for p in old.rglob("*.parquet")}
        migrated = Registry.open(old)
        assert json.loads((old / "registry.json").read_text())["schema"] == 3
        assert migrated.sql(self.CARDS).to_pylist() == [{"source": "phantoms", "card": "{}"}]
        assert migrated.volumes() == registry_2.volumes()
        assert {p: p.read_bytes() for p in old.rglob("*.parquet")} == before

    def test_a_card_comes_with_the_next_ingest(
        self, registry_2: Registry, tmp_path: Path, run_ingest
    ) -> None:
        as_schema_2(registry_2.path)
        source = {"card": CardFacts(title="Phantoms", citation="None")}
        report = run_ingest(registry_2.path, tmp_path / "in", source=source)
        assert report.volumes_added == 0
        [row] = Registry.open(registry_2.path).sql(self.CARDS).to_pylist()
        assert json.loads(row["card"])["title"] == "Phantoms"
        commits = len(commit_folders(registry_2.path))
        run_ingest(registry_2.path, tmp_path / "in", source=source)
        run_ingest(registry_2.path, tmp_path / "in")  # without one: the source keeps its own
        assert len(commit_folders(registry_2.path)) == commits
        registry = Registry.open(registry_2.path)
        with sole_writer(registry):
            assert merge_commits(registry, 1)
        assert json.loads(registry.sql(self.CARDS)["card"][0].as_py())["title"] == "Phantoms"
        assert len(registry.sql("SELECT * FROM sources")) == 1


class TestMerging:
    @pytest.fixture
    def many(self, registry: Registry, tmp_path: Path) -> Registry:
        copy = Registry.open(shutil.copytree(registry.path, tmp_path / "many"))
        with sole_writer(copy):
            for number in range(12):
                commit(copy, {"splits": [SplitRow(subject_id=f"P{number:02d}", split="val")]})
        return copy

    def test_queries_answer_alike(self, many: Registry) -> None:
        before, last = fingerprint(many.path), commit_folders(many.path)[-1].name
        with sole_writer(many):
            assert not merge_commits(many, max_folders=20)
            assert merge_commits(many, max_folders=4)
        folders = commit_folders(many.path)
        assert len(folders) <= 4
        assert folders[-1].name.endswith(last)
        assert fingerprint(many.path) == before
        with sole_writer(many):
            sweep(many)
            assert len(list((many.path / "commits").iterdir())) == len(folders)
            assert commit(many, {"splits": []}) == int(last) + 1
        assert fingerprint(many.path) == before

    def test_readers_survive_merging_and_sweeping(self, many: Registry) -> None:
        reader = Registry.open(many.path)
        rows = reader.volumes()
        with sole_writer(many):
            merge_commits(many, max_folders=1)
            sweep(many)
        assert reader.volumes() == rows

    def test_killed_before_the_rename_changes_nothing(
        self, many: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = fingerprint(many.path)
        with monkeypatch.context() as patch, sole_writer(many):
            patch.setattr("data_registry.compaction._concatenate", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                merge_commits(many, max_folders=1)
        assert fingerprint(many.path) == before
        with sole_writer(many):
            assert merge_commits(many, max_folders=1)
        assert fingerprint(many.path) == before

    def test_full_disk(self, many: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        import errno

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        before = fingerprint(many.path)
        monkeypatch.setattr("data_registry.compaction._concatenate", full)
        with sole_writer(many), pytest.raises(DataError, match="DATA-07"):
            merge_commits(many, max_folders=1)
        assert fingerprint(many.path) == before

    def test_rows_keep_their_commit(self, many: Registry) -> None:
        query = "SELECT volume_id, commit FROM volumes ORDER BY ALL"
        before = many.sql(query)
        with sole_writer(many):
            merge_commits(many, max_folders=1)
        assert many.sql(query).equals(before)

    def test_each_row_is_written_again_rarely(self, tmp_path: Path) -> None:
        registry = Registry.create(tmp_path / "reg")
        written = 0
        with sole_writer(registry):
            for number in range(300):
                rows = [SplitRow(subject_id=f"P{number}-{i}", split="val") for i in range(50)]
                commit(registry, {"splits": rows})
                if merge_commits(registry, max_folders=8):
                    table = pyarrow.parquet.read_metadata(
                        commit_folders(registry.path)[-1] / "splits.parquet"
                    )
                    written += table.num_rows
                    sweep(registry)
        assert len(registry.sql("SELECT * FROM splits")) == 15_000
        assert written / 15_000 < 2 * np.log2(300)


class TestSources:
    @pytest.mark.parametrize(
        "change", [{"licence": "MIT"}, {"subject_namespace": "another hospital"}]
    )
    def test_two_sources_of_one_name(
        self, registry: Registry, scans: Path, tmp_path: Path, run_ingest, change: dict[str, str]
    ) -> None:
        copy = Path(shutil.copytree(registry.path, tmp_path / "copy"))
        before = fingerprint(copy)
        with pytest.raises(ConfigError, match="'phantoms' has") as caught:
            run_ingest(copy, scans, source=change)
        assert caught.value.code == "CONFIG-05"
        assert fingerprint(copy) == before
        run_ingest(copy, scans, source={"name": "others", **change})

    def test_in_one_list(self, scans: Path, tmp_path: Path) -> None:
        from data_registry import IngestConfig, Source, ingest

        one = Source(name="a", licence="MIT", root=str(scans))
        config = IngestConfig(
            registry=tmp_path / "reg", sources=(one, dataclasses.replace(one, licence="CC0-1.0"))
        )
        with pytest.raises(ConfigError, match="'a' has licence 'MIT' so far"):
            ingest(config)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
