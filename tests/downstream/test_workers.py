"""Fine-tuning on several workers: the batch is shared, the result is that of one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from core_mri.config import to_mapping
from core_mri.errors import ConfigError
from core_mri.launch import Workers
from core_mri.weights import load_model
from downstream.evaluation.suite import finetune, finetune_worker
from tests.workers import run_workers


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def check_same(alone, shared):
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-4)
    one, other = load_model(alone / "weights"), load_model(shared / "weights")
    for parameter, own in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(parameter, own, atol=2e-4)
    assert sorted(path.name for path in alone.glob("predictions/*")) == sorted(
        path.name for path in shared.glob("predictions/*")
    )


@pytest.mark.parametrize("adaptation", ["frozen", "full"])
def test_losses_and_model_are_those_of_one_worker(finetune_config, tmp_path, adaptation):
    """Three share four slices: one of them has two."""
    config = finetune_config(adaptation=adaptation, out=tmp_path / "one")
    alone = finetune(config)
    shared = replace(config, out=tmp_path / "shared")
    payload = {"config": to_mapping(shared), "folder": str(tmp_path)}
    run_workers(finetune_worker, tmp_path / "workers", payload, num_workers=3)
    check_same(alone, shared.out)


@pytest.mark.slow  # minutes of starting processes
@pytest.mark.parametrize("launcher", ["torchrun", "ray"])
def test_launchers(finetune_config, tmp_path, launcher):
    config = finetune_config(adaptation="lora", out=tmp_path / "one")
    shared = replace(config, out=tmp_path / "shared")
    check_same(
        finetune(config), finetune(shared, workers=Workers(launcher=launcher, num_workers=2))
    )


def test_nothing_to_share_is_refused(finetune_config, sequences):
    two = Workers(launcher="torchrun", num_workers=2)
    with pytest.raises(ConfigError, match=r"CONFIG-05.*classification runs on one worker"):
        finetune(finetune_config(task=sequences), workers=two)
    many = Workers(launcher="torchrun", num_workers=5)
    with pytest.raises(ConfigError, match=r"CONFIG-05.*batch_size 4 cannot be shared by 5"):
        finetune(finetune_config(), workers=many)
