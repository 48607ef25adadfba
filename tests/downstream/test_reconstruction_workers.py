"""Reconstruction training on several workers: the result is that of one, and goes on exactly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import core_mri
from core_mri.__main__ import main
from core_mri.config import save_config, to_mapping
from core_mri.errors import ConfigError, Interrupted
from core_mri.launch import Workers
from core_mri.runs import Run
from downstream.reconstruction.training.config import ReconstructionConfig
from downstream.reconstruction.training.finetune import (
    finetune_reconstruction,
    reconstruction_worker,
)
from downstream.reconstruction.training.trainer import ReconstructionTrainer
from tests.downstream import test_reconstruction_training as training
from tests.workers import run_workers

make = training.make
SHARED: dict[str, Any] = {
    "steps": 3,
    "fitting": {"batch_size": 3, "num_validation": 1},
    "undersampling": {"accelerations": [2], "center_fractions": [0.3]},
}
STOP_AFTER = 1


def numbers(out: Path, name: str = "loss") -> list[Any]:
    return [json.loads(line)[name] for line in (out / "metrics.jsonl").open()]


def tensors(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = core_mri.load_model(out, device="cpu").state_dict()
    return found


def two_workers(
    config: ReconstructionConfig,
    folder: Path,
    name: str,
    run: Callable[[Mapping[str, Any]], None] = reconstruction_worker,
) -> Path:
    payload = {"config": to_mapping(config), "folder": str(folder)}
    run_workers(run, folder / name, payload)
    return config.out


def stopped_worker(payload: Mapping[str, Any]) -> None:
    """The second one is asked to stop; both do, after the same step."""
    step, enter = ReconstructionTrainer.step, Run.__enter__
    current: list[Run] = []

    def stopping(self: ReconstructionTrainer, index: int) -> dict[str, float]:
        if index == STOP_AFTER and dist.get_rank() == 1:
            current[0].request_stop()
        return step(self, index)

    def entered(run: Run) -> Run:
        current[:] = [run]
        return enter(run)

    ReconstructionTrainer.step, Run.__enter__ = stopping, entered  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        reconstruction_worker(payload)


def test_the_result_is_that_of_one_and_goes_on_exactly(make: training.Make, tmp_path: Path) -> None:
    """Three slices for two: one of them has two."""
    alone = finetune_reconstruction(make(out=str(tmp_path / "one"), **SHARED))
    config = make(out=str(tmp_path / "both"), **SHARED)
    both = two_workers(config, tmp_path, "first")
    assert numbers(both) == pytest.approx(numbers(alone), rel=1e-4)
    one, other = tensors(alone), tensors(both)
    # Adam's first steps make much of a gradient that is rounding alone: the whole way is compared.
    start = training.weights_of(training.trainer_of(config))
    way, apart = (
        torch.cat([(one[name] - those[name]).flatten() for name in one]).norm()
        for those in (start, other)
    )
    assert float(way) > 0
    assert float(apart / way) < 0.02

    halted = replace(config, out=tmp_path / "halted")
    two_workers(halted, tmp_path, "second", stopped_worker)
    assert len(numbers(halted.out)) == STOP_AFTER + 1
    assert not (halted.out / "weights").exists()
    two_workers(halted, tmp_path, "third")
    assert numbers(halted.out, "loss_hex") == numbers(both, "loss_hex")
    again = tensors(halted.out)
    assert all(torch.equal(tensor, again[name]) for name, tensor in other.items())


def test_more_workers_than_slices_are_refused(make: training.Make) -> None:
    config = make(**SHARED)
    with pytest.raises(ConfigError, match=r"CONFIG-05.*cannot be shared by 4"):
        finetune_reconstruction(config, workers=Workers(launcher="torchrun", num_workers=4))
    assert not config.out.exists()


@pytest.mark.slow  # minutes of starting processes
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", ["torchrun", "ray"])
def test_launchers(launcher: str, make: training.Make, tmp_path: Path) -> None:
    alone = finetune_reconstruction(make(out=str(tmp_path / "one"), **SHARED))
    config = make(out=str(tmp_path / "both"), **SHARED)
    save_config(config, tmp_path / "config.yaml")
    command = ["finetune", str(tmp_path / "config.yaml")]
    assert main([*command, "--launcher", launcher, "--num-workers", "2"]) == 0
    assert numbers(config.out) == pytest.approx(numbers(alone), rel=1e-4)
    assert (config.out / "report.html").exists()
