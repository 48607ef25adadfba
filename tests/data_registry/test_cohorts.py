"""Cohorts never change, name their content, and notice when the registry does; hostile SQL."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from core_mri.__main__ import main
from core_mri.errors import ConfigError, CoreMRIError, DataError
from data_registry import Registry, SliceDataset
from data_registry.cohorts import compare, condition, freeze, load, names, preview
from data_registry.export import ExportConfig, export

ALL = ("train", "val", "test")


@pytest.fixture
def copy(registry: Registry, tmp_path: Path) -> Registry:
    return Registry.open(shutil.copytree(registry.path, tmp_path / "copy"))


class TestFrozen:
    def test_hash_is_over_sorted_ids_and_contents(self, copy: Registry) -> None:
        cohort = freeze(copy, "knees", "region = 'knee'")
        rows = copy.volumes("region = 'knee'")
        lines = "".join(f"{row.volume_id} {row.pixel_hash}\n" for row in rows)
        assert cohort.digest == hashlib.sha256(lines.encode()).hexdigest()
        assert (cohort.num_volumes, cohort.num_slices) == (6, 24)
        assert load(copy, "knees") == cohort
        assert names(copy) == ["knees"]

    def test_condition_and_select_choose_alike(self, copy: Registry) -> None:
        sql = (
            "SELECT s.volume_id FROM slices s JOIN volumes USING (volume_id) WHERE region = 'knee'"
        )
        assert preview(copy, sql=sql).digest == preview(copy, "region = 'knee'").digest

    def test_another_process_and_a_copy_see_the_same(self, copy: Registry, tmp_path: Path) -> None:
        cohort = freeze(copy, "knees", "region = 'knee'")
        moved = Registry.open(shutil.copytree(copy.path, tmp_path / "moved"))
        assert load(moved, "knees") == cohort

    def test_a_name_is_taken_once(self, copy: Registry) -> None:
        first = freeze(copy, "a", "region = 'knee'")
        with pytest.raises(ConfigError, match="already") as caught:
            freeze(copy, "a", "region = 'brain'")
        assert caught.value.code == "CONFIG-03"
        assert load(copy, "a") == first

    def test_a_damaged_cohort_is_no_cohort(self, copy: Registry) -> None:
        import pyarrow.parquet

        freeze(copy, "a", "region = 'knee'")
        path = copy.path / "cohorts" / "a.parquet"
        table = pyarrow.parquet.read_table(path)
        pyarrow.parquet.write_table(table.slice(1), path)
        with pytest.raises(DataError, match="damaged"):
            load(copy, "a")
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(DataError, match="damaged"):
            load(copy, "a")

    @pytest.mark.parametrize("name", ["", "../a", ".a", "a/b", "a'; --", "x" * 65])
    def test_names_that_are_no_file_names(self, copy: Registry, name: str) -> None:
        with pytest.raises(ConfigError, match="CONFIG-01"):
            freeze(copy, name, "region = 'knee'")

    def test_choosing_nothing(self, copy: Registry) -> None:
        with pytest.raises(DataError, match="DATA-09"):
            freeze(copy, "a", "region = 'toe'")
        with pytest.raises(ConfigError, match="volume_id among them"):
            freeze(copy, "a", sql="SELECT region FROM volumes")
        assert names(copy) == []

    def test_cannot_be_written(self, copy: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        import errno

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.link", full)
        with pytest.raises(DataError, match="DATA-07"):
            freeze(copy, "a", "region = 'knee'")
        assert list((copy.path / "cohorts").iterdir()) == []


class TestChange:
    def test_new_volumes_are_told_and_stay_out(
        self, copy: Registry, run_ingest, save, tmp_path
    ) -> None:
        cohort = freeze(copy, "knees", "region = 'knee' AND role = 'image'")
        assert compare(copy, cohort) == compare(copy, load(copy, "knees"))
        save(tmp_path / "new" / "patient99" / "knee_T1.nii.gz", "knee", 9)
        run_ingest(copy.path, tmp_path / "new")
        change = compare(copy, cohort)
        assert (change.more, change.fewer, change.missing) == (1, 0, 0)
        assert len(copy.volumes(condition(copy, "knees"))) == 3

    def test_a_volume_that_is_gone_is_an_error_where_the_cohort_is_used(
        self, copy: Registry
    ) -> None:
        from data_registry.commits import commit, sole_writer
        from data_registry.schema import RetiredRow

        cohort = freeze(copy, "knees", "region = 'knee'")
        with sole_writer(copy):
            gone = copy.volumes("region = 'knee'")[0].volume_id
            commit(copy, {"retired": [RetiredRow(volume_id=gone)]})
        change = compare(copy, cohort)
        assert (change.more, change.fewer, change.missing) == (0, 1, 1)
        with pytest.raises(DataError, match=r"1 volumes of cohort knees are no longer"):
            condition(copy, "knees")


class TestUse:
    def test_slices_and_export(self, copy: Registry, tmp_path: Path) -> None:
        freeze(copy, "knees", "region = 'knee'")
        slices = SliceDataset(copy, split=ALL, cohort="knees", min_foreground=0)
        assert {row.region for row in slices.volumes} == {"knee"}
        assert len(slices) == 12
        config = ExportConfig(
            registry=copy.path, out=tmp_path / "o", format="nifti", cohort="knees"
        )
        assert export(config).written == 6

    def test_with_a_condition_that_has_or_in_it(self, copy: Registry) -> None:
        freeze(copy, "knees", "region = 'knee'")
        where = condition(copy, "knees", "role = 'label' OR role = 'image'")
        assert len(copy.volumes(where)) == 6

    def test_unknown(self, copy: Registry) -> None:
        freeze(copy, "knees", "region = 'knee'")
        with pytest.raises(ConfigError, match="no cohort knee; there are: knees"):
            SliceDataset(copy, cohort="knee")


class TestCommand:
    def test_freezes_shows_and_compares(
        self, copy: Registry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["data", "query", "--registry", str(copy.path)]
        assert main([*words, "--where", "region = 'knee'"]) == 0
        assert "6 volumes, 24 slices, sha256" in capsys.readouterr().out
        assert main([*words, "--where", "region = 'knee'", "--name", "k", "--json"]) == 0
        first = json.loads(capsys.readouterr().out)
        assert first["frozen_now"]
        assert main([*words, "--name", "k", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {**first, "frozen_now": False}
        assert main([*words, "--where", "region = 'brain'", "--name", "k"]) == 2
        assert "frozen with another query" in capsys.readouterr().err
        assert main(words) == 0
        assert first["digest"][:12] in capsys.readouterr().out

    def test_select(self, copy: Registry, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["data", "query", "--registry", str(copy.path), "--sql"]
        sql = "SELECT region, sum(num_slices) AS n FROM volumes GROUP BY ALL ORDER BY region"
        assert main([*words, sql, "--json", "--limit", "1"]) == 0
        assert json.loads(capsys.readouterr().out) == {"region": "brain", "n": 28}
        assert main([*words, "SELECT * FROM subjects"]) == 0
        assert capsys.readouterr().out.startswith("7 of 7 rows")


HOSTILE = [
    "COPY (SELECT 1) TO '{file}'",
    "COPY volumes TO '{file}'",
    "ATTACH '{file}'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "RESET allowed_directories",
    "PRAGMA database_list",
    "CREATE TABLE x AS SELECT 1",
    "EXPORT DATABASE '{file}'",
    "SELECT 1; COPY (SELECT 1) TO '{file}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('{registry}/commits/../../secret.key')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM parquet_metadata('/etc/passwd')",
    "SELECT * FROM read_parquet('https://example.invalid/x.parquet')",
    "SELECT * FROM query('COPY (SELECT 1) TO ''{file}''')",
    "",
    "-- nothing",
]


class TestHostile:
    @pytest.mark.parametrize("query", HOSTILE)
    def test_reads_and_writes_nothing(self, copy: Registry, tmp_path: Path, query: str) -> None:
        secret = copy.path.parent / "secret.key"
        secret.write_text("c0ffee")
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        text = query.format(file=tmp_path / "stolen.csv", registry=copy.path)
        for ask in (
            lambda: copy.sql(text),
            lambda: list(copy.rows(text)),
            lambda: preview(copy, sql=text or " "),
        ):
            with pytest.raises(CoreMRIError, match="CONFIG-01") as caught:
                ask()
            assert "c0ffee" not in str(caught.value)
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before

    @pytest.mark.parametrize("query", HOSTILE[:3])
    def test_nor_does_a_condition(self, copy: Registry, tmp_path: Path, query: str) -> None:
        text = query.format(file=tmp_path / "stolen.csv")
        with pytest.raises(CoreMRIError, match="CONFIG-01"):
            copy.volumes(f"1 = 1; {text}")
        assert not (tmp_path / "stolen.csv").exists()
