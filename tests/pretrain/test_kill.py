"""A worker is killed with SIGKILL: all are started again, and every loss is that of a whole run."""

from __future__ import annotations

import pytest

from tests.pretrain.kill_runs import EVERY, RunFolder, finish, make_inputs, run_case, start


@pytest.mark.timeout(900)
def test_after_a_killed_worker_the_losses_are_those_of_an_uninterrupted_run(tmp_path):
    config = make_inputs(tmp_path)
    words = ("--launcher", "torchrun", "--num-workers", "2")
    finish(start(config, tmp_path / "whole", *words), tmp_path / "whole")
    whole = [line["loss_hex"] for line in RunFolder(tmp_path / "whole").lines()]
    result = run_case("torchrun", config, whole, tmp_path)
    assert result.same == "bit by bit"
    assert result.repeated <= 2 * EVERY
