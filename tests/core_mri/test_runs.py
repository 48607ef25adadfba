from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from core_mri.errors import ConfigError, DataError, Interrupted, RunError
from core_mri.runs import KEPT_CHECKPOINTS, Run, write_atomically, writing


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = 0
    """Seed."""
    checkpoint_every: int = 10
    """Steps."""


def open_run(folder: Path, config: Config | None = None, **options: bool) -> Run:
    return Run.open(folder / "run", config or Config(), **options)


class TestFolder:
    def test_holds_what_repeats_the_run(self, tmp_path: Path) -> None:
        run = open_run(tmp_path)
        assert (run.out / "config.yaml").read_text().startswith("seed: 0")
        assert "torch" in json.loads((run.out / "environment.json").read_text())["packages"]

    def test_foreign_files_are_refused_and_kept(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.txt").write_text("mine")
        with pytest.raises(ConfigError) as caught:
            open_run(tmp_path)
        assert caught.value.code == "CONFIG-03"
        assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]

    def test_another_configuration_is_refused_with_the_difference(self, tmp_path: Path) -> None:
        open_run(tmp_path)
        with pytest.raises(ConfigError, match="seed: 0 -> 1") as caught:
            open_run(tmp_path, Config(seed=1))
        assert caught.value.code == "CONFIG-04"
        open_run(tmp_path, Config(checkpoint_every=5))

    def test_resume_needs_a_run(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no run to resume"):
            open_run(tmp_path, resume=True)

    def test_other_workers_write_nothing(self, tmp_path: Path) -> None:
        with open_run(tmp_path, main=False) as run:
            run.log_metrics(0, loss=1.0)
        assert not run.out.exists()


class TestMetrics:
    def test_loss_is_kept_to_the_last_bit(self, tmp_path: Path) -> None:
        with open_run(tmp_path) as run:
            run.log_metrics(0, loss=0.1 + 0.2, rate=float("nan"))
            (line,) = run.metrics()
        assert float.fromhex(line["loss_hex"]) == 0.1 + 0.2
        assert line["rate"] is None

    def test_half_a_line_is_ignored(self, tmp_path: Path) -> None:
        with open_run(tmp_path) as run:
            run.log_metrics(0, loss=1.0)
            with (run.out / "metrics.jsonl").open("a") as file:
                file.write('{"step": 1, "lo')
            assert [line["step"] for line in run.metrics()] == [0]


class TestCheckpoints:
    def test_newest_comes_back_and_old_ones_go(self, tmp_path: Path) -> None:
        with open_run(tmp_path) as run:
            for step in range(1, 5):
                run.log_metrics(step - 1, loss=float(step))
                run.save_checkpoint(step, {"x": torch.full((2,), float(step)), "step": step})
            run.log_metrics(4, loss=9.0)
            step, state = run.load_checkpoint() or (0, {})
            assert step == 4
            assert torch.equal(state["x"], torch.full((2,), 4.0))
            kept = list((run.out / "checkpoints").glob("step_*"))
            assert len(kept) == KEPT_CHECKPOINTS
            assert [line["step"] for line in run.metrics()] == [0, 1, 2, 3]

    def test_none_at_the_start(self, tmp_path: Path) -> None:
        assert open_run(tmp_path).load_checkpoint() is None

    def test_only_one_process_writes_at_a_time(self, tmp_path: Path) -> None:
        with open_run(tmp_path):
            with pytest.raises(RunError, match="another process") as caught, open_run(tmp_path):
                pass
            assert caught.value.code == "RUN-09"
        with open_run(tmp_path):
            pass

    def test_one_that_cannot_be_completed_is_said_at_the_end(self, tmp_path: Path) -> None:
        run = open_run(tmp_path)
        run.__enter__()
        (run.out / "checkpoints").write_text("in the way")
        run.save_checkpoint(1, {"x": torch.ones(1)})
        with pytest.raises(DataError, match="cannot be written") as caught:
            run.__exit__(None, None, None)
        assert caught.value.code == "DATA-07"

    def test_snapshots_all_stay(self, tmp_path: Path) -> None:
        with open_run(tmp_path) as run:
            for step in (1, 2, 3, 4):
                folder = run.keep_checkpoint("alarms", step, {"step": step})
                assert (folder / "manifest.json").is_file()
            assert len(list((run.out / "alarms").glob("step_*"))) == 4
            assert run.load_checkpoint() is None


class TestInterrupt:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_saves_and_leaves(self, tmp_path: Path, number: signal.Signals) -> None:
        before = signal.getsignal(number)
        with open_run(tmp_path) as run:
            os.kill(os.getpid(), number)
            with pytest.raises(Interrupted, match="--resume") as caught:
                run.check_interrupt(7, lambda: {"step": 7})
        assert caught.value.exit_code == 130
        assert (run.load_checkpoint() or (0, {}))[0] == 7
        assert signal.getsignal(number) is before

    def test_nothing_happens_without_one(self, tmp_path: Path) -> None:
        with open_run(tmp_path) as run:
            run.check_interrupt(1, dict)
        assert run.load_checkpoint() is None


class TestPart:
    def test_a_stop_asked_of_one_is_asked_of_both(self, tmp_path: Path) -> None:
        with open_run(tmp_path) as run:
            with run.part("cells/first", Config(seed=1)) as own:
                assert own.out == run.out / "cells" / "first"
                assert not own.stop_requested
            assert not run.stop_requested
            with run.part("cells/second", Config(seed=2)):
                os.kill(os.getpid(), signal.SIGTERM)
                assert not run.stop_requested
            assert run.stop_requested
            with run.part("cells/third", Config(seed=3)) as own:
                assert own.stop_requested


class TestWriting:
    def test_readers_never_see_a_part(self, tmp_path: Path) -> None:
        target = tmp_path / "file"
        write_atomically(target, b"old")
        write_atomically(target, b"new")
        assert target.read_bytes() == b"new"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]

    def test_an_unwritable_folder_is_one_clear_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        folder = tmp_path / "file" / "below"
        with pytest.raises(DataError, match="cannot be written"), writing(folder):
            folder.mkdir()
