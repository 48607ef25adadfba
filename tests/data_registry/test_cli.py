from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from core_mri.__main__ import main
from data_registry import Registry


@pytest.fixture
def ingest_words(scans: Path, tmp_path: Path, key_file: Path) -> list[str]:
    return [
        "data", "ingest", str(scans / "patient01"), "--registry", str(tmp_path / "reg"),
        "--source", "phantoms", "--licence", "CC0-1.0", "--key-file", str(key_file), "--jobs", "1",
    ]  # fmt: skip


class TestIngest:
    def test_counts_and_next_command(
        self, ingest_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(ingest_words) == 0
        shown = capsys.readouterr()
        assert "volumes added  2" in shown.out
        assert "1 volumes, 4 slices, 1 subjects, 0 synthetic, 1 labels" in shown.out
        assert f"core-mri data ls --registry {tmp_path / 'reg'}" in shown.out
        assert shown.err == ""
        assert main(ingest_words) == 0
        assert "volumes added        0" in capsys.readouterr().out

    def test_json(
        self, ingest_words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert main([*ingest_words, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["volumes_added"] == 2
        assert report["registry"] == Registry.open(tmp_path / "reg").stats()

    def test_american_spelling_is_understood(self, ingest_words: list[str]) -> None:
        assert main(["--license" if w == "--licence" else w for w in ingest_words]) == 0

    def test_source_list(
        self, scans: Path, tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "list.yaml").write_text(
            f"sources: [{{name: a, licence: MIT, root: {scans}, include: ['**/*_T1.nii.gz']}}]"
        )
        words = ["--sources", str(tmp_path / "list.yaml"), "--registry", str(tmp_path / "reg")]
        assert main(["data", "ingest", *words, "--key-file", str(key_file), "--jobs", "1"]) == 0
        capsys.readouterr()
        assert main(["data", "stats", "--registry", str(tmp_path / "reg"), "--json"]) == 0
        stats = json.loads(capsys.readouterr().out)
        assert (stats["volumes"], stats["labels"]) == (6, 0)


class TestExitCodes:
    def test_mixed_input(
        self, ingest_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bad = tmp_path / "in" / "secret-name.txt"
        bad.parent.mkdir()
        bad.write_text("Dear colleague")
        words = [*ingest_words[:3], str(bad.parent), *ingest_words[3:]]
        assert main(words) == 0
        shown = capsys.readouterr()
        assert "1 x DATA-03 a file is no image of a known format: F" in shown.out
        assert "secret" not in shown.out + shown.err
        assert main([*words, "--strict"]) == 1
        assert capsys.readouterr().err.count("\n") == 1

    def test_nothing_readable(
        self, ingest_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "empty").mkdir()
        ingest_words[2] = str(tmp_path / "empty")
        assert main(ingest_words) == 1
        shown = capsys.readouterr()
        assert shown.err.startswith("core-mri: DATA-01: ")
        assert shown.err.count("\n") == 1

    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["digest"],
            ["ingest"],
            ["ingest", "x", "--registry", "r"],
            ["ingest", "x", "--registry", "r", "--source", "a"],
            ["ingest", "x", "--registry", "r", "--source", "a", "--licence", "C C"],
            ["ingest", "x", "--registry", "r", "--sources", "l.yaml"],
            ["ingest", "--registry", "r", "--sources", "no such list"],
            ["ingest", "x", "--registry", "r", "--source", "a", "--licence", "MIT", "--job", "1"],
            ["stats"],
        ],
    )
    def test_wrong_usage(
        self, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["data", *words]) == 2
        assert list(tmp_path.iterdir()) == []

    def test_folder_that_is_no_registry(self, ingest_words: list[str], tmp_path: Path) -> None:
        (tmp_path / "reg").mkdir()
        (tmp_path / "reg" / "thesis.txt").touch()
        assert main(ingest_words) == 2
        assert main(["data", "stats", "--registry", str(tmp_path / "reg")]) == 1

    def test_nearest_verb(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["data", "stat"]) == 2
        assert "'stats'" in capsys.readouterr().err


class TestLooking:
    def test_stats(self, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["data", "stats", "--registry", str(registry.path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == registry.stats()
        assert main(["data", "stats", "--registry", str(registry.path)]) == 0
        assert "8 volumes, 32 slices, 7 subjects, 0 synthetic, 6 labels" in capsys.readouterr().out

    def test_ls(self, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["data", "ls", "--registry", str(registry.path), "--where", "region = 'knee'"]
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("6 of 6 volumes")
        assert shown.count("knee") == 6
        assert main([*words, "--limit", "2", "--json"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["region"] for row in rows] == ["knee", "knee"]

    def test_wrong_condition(self, registry: Registry) -> None:
        assert main(["data", "ls", "--registry", str(registry.path), "--where", "colour = 1"]) == 2


class TestHelp:
    @pytest.mark.parametrize("verb", ["ingest", "stats", "ls"])
    def test_every_verb_explains_itself(
        self, verb: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["data", verb, "--help"]) == 0
        assert "--registry" in capsys.readouterr().out
        assert main(["data", "--help"]) == 0
        assert verb in capsys.readouterr().out

    def test_help_is_light(self) -> None:
        code = (
            "import sys; from core_mri.__main__ import main; main(['data', '--help']); "
            "sys.exit(any(m in sys.modules for m in ('torch', 'duckdb', 'pydicom', 'pyarrow')))"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
