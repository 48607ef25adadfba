from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from core_mri.errors import ConfigError, RunError
from core_mri.launch import map_on_ray
from downstream.cli import evaluate_main
from downstream.config import Running
from downstream.evaluation.suite import evaluate

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Workers import this checkout and the functions below."""
    root = Path(__file__).resolve().parents[2]
    paths = [str(root), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def probe(payload):
    """Called in a worker."""
    from core_mri.errors import DataError

    if payload["do"] == "raise":
        raise DataError("DATA-09", "too few.", fix="Add some.")
    if payload["do"] == "break":
        raise ZeroDivisionError("a bug")
    if payload["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"pid": os.getpid(), "number": payload["number"]}


class TestRunning:
    def test_workers_need_an_address(self):
        with pytest.raises(ConfigError, match="--ray"):
            Running(workers=2)


class TestUnreachable:
    def test_is_told_in_seconds_and_nothing_is_lost(self, suite_config):
        config = suite_config(tasks=suite_config().tasks[1:])
        with pytest.raises(RunError, match="cannot be reached") as caught:
            evaluate(config, running=Running(ray="127.0.0.1:1"))
        assert caught.value.code == "RUN-02"
        evaluate(config, resume=True)
        assert (config.out / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)  # workers start slowly on a busy machine
class TestCluster:
    def test_results_errors_and_deaths_arrive_as_they_were(self):
        kinds = ["work", "raise", "work", "break", "die", "work"]
        payloads = [{"do": kind, "number": number} for number, kind in enumerate(kinds)]
        found = dict(map_on_ray("test_remote:probe", payloads, address="local", num_workers=2))
        assert sorted(found) == list(range(6))
        assert {found[i]["number"] for i in (0, 2, 5)} == {0, 2, 5}
        assert os.getpid() not in {found[i]["pid"] for i in (0, 2, 5)}
        assert (found[1].code, found[1].fix) == ("DATA-09", "Add some.")
        assert found[3].code == found[4].code == "RUN-02"
        assert "a bug" in str(found[3])

    def test_a_suite_gives_the_same_bytes_as_in_process(self, suite_config, tmp_path, capsys):
        from core_mri.config import save_config

        values = {"k": (1, 500), "draws": 1, "baselines": ("unet",)}
        here = evaluate(suite_config(out=tmp_path / "here", **values))
        there = suite_config(out=tmp_path / "there", **values)
        save_config(there, tmp_path / "suite.yaml")
        code = evaluate_main([str(tmp_path / "suite.yaml"), "--ray", "local", "--workers", "2"])
        assert code == 1  # k = 500 fails, as it does in process
        for name in ("results.json", "results.csv", "summary.csv", "summary.tex"):
            assert (here / name).read_bytes() == (there.out / name).read_bytes(), name
        assert len(json.loads((here / "results.json").read_text())["failed"]) == 3
        assert "cells failed" in capsys.readouterr().out
