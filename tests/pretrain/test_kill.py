"""A worker is killed with SIGKILL: all are started again, and every loss is that of a whole run."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pretrain.train
from core_mri.config import load_config
from core_mri.launch import Workers
from pretrain.config import PretrainConfig
from tests.pretrain.kill_runs import EVERY, RunFolder, make_inputs, run_case
from tests.workers import run_workers


@pytest.mark.timeout(900)
def test_after_a_killed_worker_the_losses_are_those_of_an_uninterrupted_run(tmp_path, monkeypatch):
    """The uninterrupted run has two workers too, which start at once."""

    def started(_entry, payload, workers, *, storage):
        body = pretrain.train.run_worker
        run_workers(body, storage, payload, num_workers=workers.num_workers)

    path = make_inputs(tmp_path)
    config = replace(load_config(PretrainConfig, path), out=tmp_path / "whole")
    monkeypatch.setattr(pretrain.train, "launch", started)
    pretrain.train.train(config, workers=Workers(launcher="torchrun", num_workers=2))
    whole = [line["loss_hex"] for line in RunFolder(config.out).lines()]
    assert len(whole) == config.steps
    result = run_case("torchrun", path, whole, tmp_path)
    assert result.same == "bit by bit"
    assert result.repeated <= 2 * EVERY
