from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core_mri.config import load_config, save_config
from core_mri.errors import ConfigError, RunError
from core_mri.runs import locked
from pretrain.config import CONFIGS, PretrainConfig
from pretrain.sweep import Ends, SweepOptions, Trial, sweep, trials_of
from pretrain.sweep_report import write_results
from pretrain.sweep_trials import _lines_from
from tests.pretrain.kill_runs import RunFolder, finish, start

RATES = ("optimizer.learning_rate=1e-3,2e-3",)


def hexes(out):
    return [line["loss_hex"] for line in RunFolder(out).lines()]


class TestTrials:
    def test_every_combination_with_every_seed(self, tiny):
        options = SweepOptions(vary=(*RATES, "masking.ratio=[0.1,0.3],[0.1,0.5]"), seeds=(0, 1))
        trials = trials_of(tiny(), options)
        assert len({trial.name for trial in trials}) == 8
        assert len({trial.config.out for trial in trials}) == 8
        found = {
            (c.optimizer.learning_rate, c.masking.ratio, c.seed)
            for c in (trial.config for trial in trials)
        }
        assert found == {
            (rate, (0.1, high), seed)
            for rate in (1e-3, 2e-3)
            for high in (0.3, 0.5)
            for seed in (0, 1)
        }
        assert len({trial.label for trial in trials}) == 4

    def test_names_do_not_depend_on_the_other_trials(self, tiny):
        few = trials_of(tiny(), SweepOptions(vary=RATES, seeds=(0,)))
        many = trials_of(tiny(), SweepOptions(vary=(f"{RATES[0]},3e-3",), seeds=(0, 1)))
        assert {trial.name for trial in few} < {trial.name for trial in many}

    def test_nothing_varied_is_one_trial(self, tiny):
        (trial,) = trials_of(tiny(), SweepOptions())
        assert trial.config.seed == tiny().seed

    def test_packaged_strategies_fit_the_packaged_configuration(self):
        config = load_config(PretrainConfig, CONFIGS / "tiny_cpu.yaml")
        options = SweepOptions(strategies="objectives", vary=("drop_path=0,0.1",))
        trials = trials_of(config, options)
        names = {trial.settings["strategy"]: trial.config.objective.name for trial in trials}
        assert names == {
            **dict.fromkeys(("dino_ibot", "dino", "ibot", "gram"), "distillation"),
            "mae": "mae",
            "ijepa": "ijepa",
        }
        assert len(trials) == 12

    @pytest.mark.parametrize(
        ("words", "code", "told"),
        [
            (("optimizer.lr=1",), "CONFIG-01", "unknown key `optimizer.lr`"),
            (("steps.many=1",), "CONFIG-01", "`steps`"),
            (("batch_size=some",), "CONFIG-01", "`batch_size` = 'some'"),
            (("batch_size",), "CONFIG-05", "KEY=VALUE"),
            (("batch_size=",), "CONFIG-05", "KEY=VALUE"),
            (("seed=0,1",), "CONFIG-05", "--seeds"),
            (("drop_path=0,0",), "CONFIG-05", "two trials"),
        ],
    )
    def test_what_cannot_be_varied(self, tiny, words, code, told):
        with pytest.raises(ConfigError, match=told) as caught:
            trials_of(tiny(), SweepOptions(vary=words))
        assert caught.value.code == code

    def test_strategies_that_are_no_mapping(self, tiny, tmp_path):
        (tmp_path / "mine.yaml").write_text("mae: 3\n")
        with pytest.raises(ConfigError, match="strategy mae"):
            trials_of(tiny(), SweepOptions(strategies=str(tmp_path / "mine.yaml")))

    def test_nearest_neighbors_need_probes(self, tiny):
        with pytest.raises(ConfigError, match="probe_every"):
            sweep(tiny(health={"probe_every": 0}), SweepOptions(vary=RATES))


class TestFolder:
    def test_of_something_else(self, tiny):
        config = tiny()
        config.out.mkdir()
        (config.out / "thesis.txt").write_text("mine")
        with pytest.raises(ConfigError) as caught:
            sweep(config, SweepOptions(vary=RATES))
        assert caught.value.code == "CONFIG-03"

    def test_of_trials_of_another_configuration(self, finished_trials, tiny):
        config, trials = finished_trials
        write_results(config.out, trials, "knn", Ends(config.out))
        with pytest.raises(ConfigError, match="batch_size: 8 -> 16") as caught:
            sweep(tiny(batch_size=16), SweepOptions(vary=RATES))
        assert caught.value.code == "CONFIG-04"

    def test_of_a_sweep_that_is_running(self, tiny):
        config = tiny()
        config.out.mkdir()
        (config.out / "sweep.json").write_text('{"trials": []}')
        with locked(config.out), pytest.raises(RunError) as caught:
            sweep(config, SweepOptions(vary=RATES))
        assert caught.value.code == "RUN-09"


@pytest.fixture
def finished_trials(tiny):
    """Folders as runs of two settings leave them."""
    config = tiny()
    trials = trials_of(config, SweepOptions(vary=RATES, seeds=(0, 1)))
    for number, trial in enumerate(trials):
        leave(trial, [0.5, 0.6 + 0.1 * number])
    return config, trials


def leave(trial: Trial, knn, *, whole=True):
    out = trial.config.out
    (out / "weights").mkdir(parents=True, exist_ok=True)
    save_config(trial.config, out / "config.yaml")
    (out / "run.json").write_text(json.dumps({"config": json.loads(as_json(trial.config))}))
    lines = [
        {"step": step, "knn_region": value, "loss": 3.0 - step, "rank": 4.0, "seconds": 1.0}
        for step, value in enumerate(knn)
    ]
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if whole:
        (out / "report.html").write_text("a page")


def as_json(config):
    from core_mri.config import to_mapping

    return json.dumps(to_mapping(config))


class TestResults:
    def verdict(self, config):
        page = (config.out / "report.html").read_text()
        return page.split('class="verdict">')[1].split("</p>")[0]

    def test_one_setting_that_is_better_with_every_seed(self, finished_trials):
        config, trials = finished_trials  # 0.6, 0.7 and 0.8, 0.9
        rows = write_results(config.out, trials, "knn", Ends(config.out))
        assert [row["knn"] for row in rows] == pytest.approx([0.6, 0.7, 0.8, 0.9])
        assert [row["state"] for row in rows] == ["finished"] * 4
        assert "learning_rate 2e-3: 0.850 (n = 2 seeds), then" in self.verdict(config)
        assert "every seed of one setting is better" in self.verdict(config)
        saved = json.loads((config.out / "sweep.json").read_text())
        assert saved["trials"] == rows
        assert saved["summary"][0]["lowest"] == pytest.approx(0.8)
        assert len((config.out / "sweep.csv").read_text().splitlines()) == 5

    def test_seeds_that_overlap_have_no_winner(self, finished_trials):
        config, trials = finished_trials
        leave(trials[0], [0.5, 0.85])
        write_results(config.out, trials, "knn", Ends(config.out))
        assert "no setting is called best" in self.verdict(config)

    def test_the_loss_is_better_when_it_is_lower(self, finished_trials):
        config, trials = finished_trials
        for trial in trials[:2]:
            leave(trial, [0.5] * 3)
        write_results(config.out, trials, "loss", Ends(config.out))
        assert "learning_rate 1e-3: 1.000" in self.verdict(config)

    def test_one_seed_has_no_winner(self, finished_trials):
        config, trials = finished_trials
        write_results(config.out, trials[1:], "knn", Ends(config.out))
        assert "Some settings have one finished seed" in self.verdict(config)
        assert "then" not in self.verdict(config)

    def test_trials_that_are_not_finished_do_not_count(self, finished_trials):
        config, trials = finished_trials
        for trial in trials[2:]:
            (trial.config.out / "report.html").unlink()
        ends = Ends(config.out)
        ends.note(trials[2].name, "stopped")
        ends.note(trials[3].name, "failed", "RUN-01: it diverged.")
        rows = write_results(config.out, trials, "knn", ends)
        assert [row["state"] for row in rows] == ["finished", "finished", "stopped", "failed"]
        assert "Fewer than two settings" in self.verdict(config)
        assert "RUN-01: it diverged." in (config.out / "report.html").read_text()
        again = Ends(config.out)
        assert [again.of(trial)[0] for trial in trials[2:]] == ["stopped", "failed"]
        again.forget("failed")
        assert [again.of(trial)[0] for trial in trials[2:]] == ["stopped", "open"]


class TestCourse:
    def test_only_whole_and_new_lines(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        assert _lines_from(path, 0) == ([], 0)
        path.write_text('{"step": 0}\n{"st')
        lines, position = _lines_from(path, 0)
        assert lines == [{"step": 0}]
        path.write_text('{"step": 0}\n{"step": 1}\n')
        lines, position = _lines_from(path, position)
        assert lines == [{"step": 1}]
        path.write_text('{"step": 0}\n')  # cut back to a checkpoint
        assert _lines_from(path, position) == ([{"step": 0}], 12)


@pytest.fixture(scope="module")
def cluster():
    """One Ray for the sweeps of this module, which use the connection of the process."""
    from core_mri.launch import ray_cluster

    with ray_cluster(None, 3):
        yield


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
class TestOnRay:
    def test_a_failed_trial_costs_nothing_but_itself_and_is_tried_again(
        self, tiny, registry, tmp_path
    ):
        late = tmp_path / "late"
        options = SweepOptions(vary=(f"registry={registry},{late}",), cores=1)
        config = tiny(registry=str(registry))
        report, rows = sweep(config, options)
        assert [row["state"] for row in rows] == ["finished", "failed"]
        assert "DATA-08" in rows[1]["error"]
        good = trials_of(config, options)[0].config.out
        before = {path: path.stat().st_mtime_ns for path in good.rglob("*") if path.is_file()}
        late.symlink_to(registry)
        _, rows = sweep(config, options)
        assert [row["state"] for row in rows] == ["finished", "finished"]
        assert before == {path: path.stat().st_mtime_ns for path in before}
        assert rows[0]["loss"] == rows[1]["loss"]  # the same data and seed
        assert "2 finished" in report.read_text()

    def test_successive_halving_stops_some_and_another_command_goes_on_with_them(
        self, tiny, registry
    ):
        config = tiny(registry=str(registry), steps=18, health={"every": 1, "probe_every": 0})
        options = {"vary": ("optimizer.learning_rate=1e-3,2e-3,4e-3",), "metric": "rank"}
        _, rows = sweep(config, SweepOptions(**options, scheduler="asha", concurrent=1))
        states = [row["state"] for row in rows]
        assert set(states) == {"finished", "stopped"}
        stopped = states.index("stopped")
        assert 2 <= rows[stopped]["steps"] < 18
        _, again = sweep(config, SweepOptions(**options, scheduler="asha", concurrent=1))
        assert again == rows
        _, rows = sweep(config, SweepOptions(**options))
        assert [row["state"] for row in rows] == ["finished"] * 3
        assert [row["steps"] for row in rows] == [18] * 3

    def test_trials_of_two_workers(self, tiny, registry):
        config = tiny(registry=str(registry))
        options = SweepOptions(vary=("drop_path=0",), num_workers=2)
        _, rows = sweep(config, options)
        assert [row["state"] for row in rows] == ["finished"], rows
        (trial,) = trials_of(config, options)
        facts = json.loads((trial.config.out / "environment.json").read_text())
        assert len({worker["pid"] for worker in facts["workers"]} - {os.getpid()}) == 2


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_after_its_driver_was_killed_a_sweep_goes_on(tiny, registry, tmp_path):
    """Losses are those of an uninterrupted run; what was finished is not run again."""
    config = tiny(registry=str(registry), steps=60, batch_size=16, checkpoint_every=5)
    save_config(config, tmp_path / "config.yaml")
    whole = tmp_path / "whole"
    finish(start(tmp_path / "config.yaml", whole, "--seed", "1"), whole)
    out = tmp_path / "sweep"
    words = [sys.executable, "-m", "core_mri", "pretrain", "sweep", str(tmp_path / "config.yaml")]
    words += ["--seeds", "0", "1", "--concurrent", "1", "--out", str(out)]
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(words, env=variables)
    first, second = (RunFolder(out / "trials" / f"seed={seed}") for seed in (0, 1))
    second.wait_for(lambda: len(second.lines()) >= 12)
    driver.kill()
    driver.wait()
    assert len(second.lines()) < 60
    (pid,) = second.pids().values()
    second.wait_for(lambda: not Path(f"/proc/{pid}").exists())
    finished = (first.out / "report.html").stat().st_mtime_ns
    subprocess.run(words, env=variables, check=True)
    assert (first.out / "report.html").stat().st_mtime_ns == finished
    assert hexes(second.out) == hexes(whole)
    rows = json.loads((out / "sweep.json").read_text())["trials"]
    assert [row["state"] for row in rows] == ["finished", "finished"]
