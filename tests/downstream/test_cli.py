from __future__ import annotations

import pytest

from core_mri.__main__ import main
from core_mri.config import save_config
from core_mri.errors import ConfigError
from downstream.cli import evaluate_main, table


@pytest.fixture
def saved(finetune_config, sequences, tmp_path):
    """A configuration file of a quick run, and its output folder."""
    config = finetune_config(task=sequences)
    save_config(config, tmp_path / "probe.yaml")
    return str(tmp_path / "probe.yaml"), config.out


class TestFinetune:
    def test_prints_the_table_the_report_and_what_is_next(self, saved, capsys):
        path, out = saved
        assert main(["finetune", path]) == 0
        printed = capsys.readouterr()
        assert "balanced_accuracy" in printed.out
        assert str(out / "report.html") in printed.out
        assert "next:" in printed.out
        assert "on sequence; frozen, 4 steps, seed 0" in printed.err

    def test_dry_run_writes_nothing(self, saved, capsys):
        path, out = saved
        assert main(["finetune", path, "--dry-run"]) == 0
        assert "2 cells" in capsys.readouterr().out
        assert not out.exists()

    def test_resume_needs_a_run(self, saved, capsys):
        assert main(["finetune", saved[0], "--resume"]) == 2
        assert "CONFIG-04" in capsys.readouterr().err

    def test_a_foreign_folder_is_refused(self, saved, capsys):
        path, out = saved
        out.mkdir()
        (out / "precious.txt").write_text("mine")
        assert main(["finetune", path]) == 2
        assert "CONFIG-03" in capsys.readouterr().err
        assert (out / "precious.txt").read_text() == "mine"

    def test_a_wrong_key_is_one_line(self, tmp_path, capsys):
        (tmp_path / "wrong.yaml").write_text("registy: x\n")
        assert main(["finetune", str(tmp_path / "wrong.yaml")]) == 2
        error = capsys.readouterr().err
        assert "erhaps you meant 'registry'" in error
        assert len(error.splitlines()) == 1


class TestEvaluate:
    def test_flags_override_the_suite(self, suite_config, sequences, weights, tmp_path, capsys):
        config = suite_config(tasks=(sequences,), weights={"gone": str(tmp_path / "gone")})
        save_config(config, tmp_path / "suite.yaml")
        words = ["evaluate", str(tmp_path / "suite.yaml")]
        assert main([*words, "--weights.gone", str(weights)]) == 0
        assert "gone" in capsys.readouterr().out

    def test_failed_cells_are_counted_and_the_exit_code_says_so(
        self, suite_config, sequences, weights, tmp_path, capsys
    ):
        config = suite_config(
            tasks=(sequences,), weights={"gone": str(tmp_path / "gone"), "micro": str(weights)}
        )
        save_config(config, tmp_path / "suite.yaml")
        assert main(["evaluate", str(tmp_path / "suite.yaml")]) == 1
        assert "1 cell failed" in capsys.readouterr().out

    def test_help_and_no_suite(self, capsys):
        with pytest.raises(SystemExit) as caught:
            evaluate_main(["--help"])
        assert caught.value.code == 0
        assert "--update-cards" in capsys.readouterr().out
        with pytest.raises(ConfigError, match=r"CONFIG-02.*packaged one \(clustering"):
            evaluate_main(["--dry-run"])


class TestTable:
    def test_missing_numbers_are_dashes(self):
        row = {
            "task": "a", "weights": "b", "method": "c", "k": 5, "metric": "dice", "unit": "1",
            "mean": 0.5, "n": 1, "ci_low": None, "ci_high": None, "p": None, "p_holm": None,
        }  # fmt: skip
        header, line = table([row]).splitlines()
        assert header.split()[:3] == ["task", "weights", "method"]
        assert line.split() == ["a", "b", "c", "5", "dice", "0.500", "-", "1", "-"]
