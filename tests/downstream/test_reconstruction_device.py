"""A training step on a GPU: nothing is left on the CPU, and nobody waits for the device but once.

Without a GPU the losses are taken with fake tensors (`torch._subclasses.FakeTensorMode`), which
have a device and a shape and no numbers: two devices in one operation are an error, and so is every
look at a number.
"""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from downstream.reconstruction.training.ahead import Ahead
from downstream.reconstruction.training.finetune import finetune_reconstruction
from downstream.reconstruction.training.groups import Group
from downstream.reconstruction.training.networks import load_encoder
from downstream.reconstruction.training.objective import Objective
from downstream.reconstruction.training.sets import load_sets
from downstream.reconstruction.training.trainer import ReconstructionTrainer
from tests.downstream import test_reconstruction_training as training

make = training.make
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
UNROLLED = {"steps": 2, "channels": 4, "pools": 2}
VARNET = {"name": "varnet", "steps": 2, "channels": 4, "pools": 2}
REFERENCES = {"fitting": {"validate_by": "reference"}}
WAYS: dict[str, dict[str, Any]] = {
    "supervised": {"network": UNROLLED},
    "fewer coils": {"network": UNROLLED | {"readout_coils": 2}},
    "cheap": {"network": UNROLLED | {"data_steps": 0, "warm_start": "cg-sense"}},
    "self-supervised": {"network": UNROLLED, "supervision": "self-supervised"},
    "encoder": {"network": UNROLLED, "loss": {"feature_weight": 0.01}},
    "varnet": {"network": VARNET} | REFERENCES,
    "unet": {"network": {"name": "unet", "channels": 4, "pools": 2}} | REFERENCES,
}


class Step(nn.Module):
    """Losses of prepared samples, as a module whose tensors can be replaced."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.network, self.judge = objective.network, objective.judge
        self.objective = objective

    def forward(self, groups: list[Group], count: int) -> Tensor:
        return self.objective.losses(groups, count, 0.9)


def changes_of(way: str, weights: Path) -> dict[str, Any]:
    inside = {"encoder": {"weights": str(weights), "num_levels": 2}} if way == "encoder" else {}
    return WAYS[way] | inside


@pytest.mark.parametrize("way", WAYS)
def test_losses_stay_on_the_device(way: str, make: training.Make, weights: Path) -> None:
    trainer = training.trainer_of(make(**changes_of(way, weights)))
    groups = trainer.objective.prepared([trainer.sample(index) for index in range(2)])
    step = Step(trainer.objective)
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        state = {
            name: torch.empty(
                t.shape, dtype=t.dtype, device="cuda", requires_grad=t.is_floating_point()
            )
            for name, t in [*step.named_parameters(), *step.named_buffers()]
        }
        fake = [group.each(mode.from_tensor) for group in groups]
        losses = functional_call(step, state, (fake, 3))
    assert losses.device.type == "cuda"
    assert losses.shape == (3,)
    assert losses.requires_grad


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("way", WAYS)
def test_one_wait_a_step(way: str, make: training.Make, weights: Path) -> None:
    """The same loss as on a CPU, one look at the device a step."""
    changes = changes_of(way, weights)
    changes["fitting"] = changes.get("fitting", {}) | {"num_validation": 0}
    config = make(**changes)
    sets = load_sets(config)
    losses = []
    for device in ("cpu", "cuda"):
        trainer = ReconstructionTrainer(
            config,
            sets.training,
            None,
            load_encoder(config.encoder, config.seed),
            torch.device(device),
        )
        losses.append([trainer.step(index)["loss"] for index in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.step(3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    if way == "fewer coils":
        return  # their eigenvectors are waited for
    waits = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    assert len(waits) <= 1, waits


@pytest.mark.gpu
@needs_cuda
def test_a_run_on_a_gpu(make: training.Make) -> None:
    out = finetune_reconstruction(make(device="cuda"))
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4
    assert json.loads((out / "results.json").read_text())["summary"]


class TestAhead:
    def test_one_ahead_in_another_thread(self) -> None:
        made: list[tuple[int, str]] = []

        def make_one(number: int) -> int:
            made.append((number, threading.current_thread().name))
            return number**2

        ahead = Ahead(make_one)
        assert ahead.take(3) == 9
        ahead.start(4)
        ahead.wait()
        assert [number for number, _ in made] == [3, 4]
        assert ahead.take(4) == 16
        assert len(made) == 2
        assert ahead.take(9) == 81  # a restart goes on elsewhere
        assert all(name.startswith("ahead") for _, name in made)

    def test_errors_are_raised_where_the_number_is_taken(self) -> None:
        ahead = Ahead(lambda number: 1 // number)
        assert ahead.take(1) == 1
        ahead.start(0)
        ahead.wait()
        with pytest.raises(ZeroDivisionError):
            ahead.take(0)

    def test_a_run_that_reads_ahead_is_the_same(self, make: training.Make) -> None:
        """Losses, with looks at validation patients between."""
        plain, ahead = (training.trainer_of(make()) for _ in range(2))
        ahead._ahead = Ahead(ahead._prepared)
        for index in range(4):
            assert plain.step(index) == ahead.step(index)
