"""`core-mri data plan` as its user runs it: files, repetition, updates, what goes wrong."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml

from core_mri.errors import ConfigError, DataError
from core_mri.files.dicom_write import write_dicom_series
from core_mri.physics.phantoms import phantom_volume
from data_registry import IngestConfig, Registry, ingest
from data_registry.planning.plan_cli import main
from data_registry.planning.plan_folder import read_plan
from data_registry.source_list import load_sources

FILES = {
    "plan.yaml", "series.parquet", "manifest.s5cmd", "splits.csv", "sources.yaml",
    "attribution.md", "summary.html",
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def words(index: Path, tmp_path: Path) -> list[str]:
    return ["--source", str(index), "--max-slices", "3000", "--out", str(tmp_path / "plan")]


class TestFolder:
    def test_everything_is_there_and_agrees(self, words, tmp_path, capsys) -> None:
        assert main([*words, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        files = contents(tmp_path / "plan")
        assert files.keys() == FILES
        plan = yaml.safe_load(files["plan.yaml"])
        assert plan["sha256"] == told["sha256"]
        assert plan["totals"]["slices"] == told["totals"]["slices"] <= 3000
        for name, digest in plan["files"].items():
            assert hashlib.sha256(files[name]).hexdigest() == digest
        rows = pyarrow.parquet.read_table(tmp_path / "plan" / "series.parquet").to_pylist()
        assert sum(row["num_slices"] for row in rows) == plan["totals"]["slices"]
        lines = files["manifest.s5cmd"].decode().splitlines()
        commands = [line for line in lines if not line.startswith("#")]
        assert commands == [f"cp {row['address']} ." for row in rows]
        assert all(re.fullmatch(r"cp s3://[\w-]+/[\w-]+/\* \.", line) for line in commands)
        splits = dict(list(csv.reader(files["splits.csv"].decode().splitlines()))[1:])
        assert splits == {row["patient_id"]: row["split"] for row in rows}
        named = files["attribution.md"].decode()
        for collection in {row["collection"] for row in rows}:
            assert f"Nobody, N. ({collection}). A & B [Data set]." in named
        assert b"<script" not in files["summary.html"]

    def test_again_byte_for_byte(self, words, tmp_path, capsys) -> None:
        main(words)
        first = contents(tmp_path / "plan")
        assert main(words) == 0
        assert "unchanged" in capsys.readouterr().out
        assert contents(tmp_path / "plan") == first
        other = [*words[:-1], str(tmp_path / "elsewhere")]
        assert main(other) == 0
        assert contents(tmp_path / "elsewhere") == first

    def test_what_was_lost_is_written_again(self, words, tmp_path) -> None:
        main(words)
        first = contents(tmp_path / "plan")
        (tmp_path / "plan" / "manifest.s5cmd").unlink()
        main(words)
        assert contents(tmp_path / "plan") == first

    def test_killed_while_writing(self, words, tmp_path) -> None:
        """Without plan.yaml there is no plan; the same command then makes the whole one."""
        main(words)
        whole = contents(tmp_path / "plan")
        again = [*words[:-1], str(tmp_path / "killed")]
        script = (
            "import pathlib, time\n"
            "from data_registry.planning.plan_cli import main\n"
            "replace = pathlib.Path.replace\n"
            "def slow(self, target):\n"
            "    replace(self, target)\n"
            "    print('wrote', flush=True)\n"
            "    time.sleep(60 if pathlib.Path(target).name == 'attribution.md' else 0)\n"
            "pathlib.Path.replace = slow\n"
            f"main({again!r})\n"
        )
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == b"wrote\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert "plan.yaml" not in contents(tmp_path / "killed")
        assert main(again) == 0
        assert contents(tmp_path / "killed") == whole

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    def test_read_only(self, words, tmp_path) -> None:
        (tmp_path / "plan").mkdir(mode=0o500)
        with pytest.raises(DataError, match="DATA-07"):
            main(words)

    def test_full_disk_leaves_the_old_plan(self, words, tmp_path, monkeypatch) -> None:
        main(words)
        before = contents(tmp_path / "plan")
        write_bytes = Path.write_bytes

        def full(path: Path, data: bytes) -> int:
            if path.name.endswith("summary.html"):
                raise OSError(errno.ENOSPC, "full")
            return write_bytes(path, data)

        monkeypatch.setattr(Path, "write_bytes", full)
        words[words.index("--max-slices") + 1] = "2000"
        with pytest.raises(DataError, match="DATA-07"):
            main([*words, "--update", "--write"])
        after = contents(tmp_path / "plan")
        assert {name: after[name] for name in FILES} == before

    def test_folder_of_something_else(self, words, tmp_path) -> None:
        (tmp_path / "plan").mkdir()
        (tmp_path / "plan" / "thesis.tex").write_text("years")
        with pytest.raises(ConfigError, match="CONFIG-03"):
            main(words)
        assert contents(tmp_path / "plan") == {"thesis.tex": b"years"}

    def test_damaged_plan(self, words, tmp_path) -> None:
        main(words)
        path = tmp_path / "plan" / "series.parquet"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(DataError, match=r"DATA-34.*series\.parquet"):
            main([*words, "--update"])


class TestDownloads:
    def test_ingested_they_have_licence_and_split_of_the_plan(
        self, words, tmp_path, key_file, monkeypatch
    ) -> None:
        """Made-up DICOM series in the layout of `idc download`; a collection of two licences."""
        words[words.index("--max-slices") + 1] = "0"
        main([*words, "--key-file", str(key_file), "--licence", "any-known"])
        rows = read_plan(tmp_path / "plan").series.to_pylist()
        downloads = tmp_path / "downloads"
        monkeypatch.setenv("IDC_DOWNLOADS", str(downloads))
        for number, row in enumerate(rows[:12]):
            image, _ = phantom_volume("knee", number, size=32, num_slices=4)
            folder = f"{row['collection']}/{row['patient_id']}/{row['study_uid']}"
            facts = {"Modality": "MR", "PatientID": row["patient_id"]}
            write_dicom_series(
                image, downloads / folder / f"MR_{row['series_uid']}", facts=facts,
                seed=row["series_uid"],
            )  # fmt: skip
        sources = load_sources(tmp_path / "plan" / "sources.yaml")
        registry = tmp_path / "registry"
        ingest(IngestConfig(registry=registry, sources=sources, key_file=key_file, jobs=1))
        found = Registry.open(registry).volumes()
        assert sorted((v.licence, v.split) for v in found) == sorted(
            (row["licence"], row["split"]) for row in rows[:12]
        )


class TestUpdate:
    def test_newer_index(self, words, rows, write_index, tmp_path, capsys) -> None:
        """One series gone, one with another licence, one with other files, new ones."""
        words[words.index("--max-slices") + 1] = "0"
        main(words)
        before = contents(tmp_path / "plan")
        old = read_plan(tmp_path / "plan").series.to_pylist()
        uids = [row["series_uid"] for row in old if row["kind"] == "acquired"][:4]
        gone, paid, moved, renamed = uids
        newer = [dict(row) for row in rows if row["SeriesInstanceUID"] != gone]
        by_uid = {row["SeriesInstanceUID"]: row for row in newer}
        by_uid[paid]["license_short_name"] = "CC BY-NC 4.0"
        by_uid[moved]["series_aws_url"] = "s3://idc-open-data/uuid-new/*"
        name = by_uid[renamed]["license_short_name"]
        by_uid[renamed]["license_short_name"] = "CC BY 3.0" if name == "CC BY 4.0" else "CC BY 4.0"
        newer.append(dict(by_uid[moved], SeriesInstanceUID="9.9", series_aws_url="s3://b/n/*"))
        words[1] = str(write_index(newer, "newer"))
        with pytest.raises(ConfigError, match=r"CONFIG-03.*1 gone from the index") as caught:
            main(words)
        assert "--update" in caught.value.fix
        capsys.readouterr()
        assert main([*words, "--update", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["gone"] == [gone]
        assert told["no_longer_chosen"] == {paid: "licence CC-BY-NC-4.0"}
        assert told["new"] == ["9.9"]
        assert set(told["changed"]["licence"]) == {renamed}
        assert set(told["changed"]["content (another version of the files)"]) == {moved}
        assert told["inputs"].keys() == {"index_sha256"}
        assert contents(tmp_path / "plan") == before  # nothing is written unless told
        assert main([*words, "--update", "--write"]) == 0
        assert "1" in capsys.readouterr().out
        after = {row["series_uid"] for row in read_plan(tmp_path / "plan").series.to_pylist()}
        assert after == {row["series_uid"] for row in old} - {gone, paid} | {"9.9"}
        assert main(words) == 0

    def test_patients_do_not_change_their_split(self, words, tmp_path) -> None:
        main(words)
        before = contents(tmp_path / "plan")
        for change in (["--seed", "1"], ["--fractions", "0.8", "0.1", "0.1"]):
            with pytest.raises(ConfigError, match="CONFIG-04"):
                main([*words, *change, "--update", "--write"])
        assert contents(tmp_path / "plan") == before

    def test_inputs_that_change(self, words, capsys) -> None:
        main(words)
        capsys.readouterr()
        words[words.index("--max-slices") + 1] = "2000"
        assert main([*words, "--update", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["inputs"] == {"max_slices": [3000, 2000]}
        assert not told["new"]
        assert set(told["no_longer_chosen"].values()) == {"others are taken instead"}

    def test_nothing_to_update(self, words) -> None:
        with pytest.raises(ConfigError, match="CONFIG-05"):
            main([*words, "--update"])


class TestCommand:
    def test_query(self, words, capsys) -> None:
        query = "SELECT region, count(*) AS n FROM series GROUP BY region ORDER BY n DESC LIMIT 2"
        assert main([*words[:-2], "--sql", query]) == 0
        assert "breast" in capsys.readouterr().out

    def test_exit_codes(self, words, tmp_path) -> None:
        """What cannot be met is 1, wrong usage 2; nothing is written."""
        command = [sys.executable, "-m", "core_mri", "data", "plan"]
        too_much = [*words, "--max-slices", "90000"]
        for extra, code in ((too_much, 1), ([*words, "--regions", "brian"], 2), ([], 2)):
            done = subprocess.run([*command, *extra], capture_output=True, text=True, check=False)
            assert done.returncode == code, done.stderr
            assert not (tmp_path / "plan").exists()

    def test_text(self, words, capsys) -> None:
        flags = ["--megabits-per-second", "100", "--images-per-second", "100"]
        assert main([*words, *flags, "--price-per-hour", "2"]) == 0
        said = capsys.readouterr().out
        assert "GPU h" in said
        assert "patients in two splits  0" in said
        assert "% of the slices show the" in said
