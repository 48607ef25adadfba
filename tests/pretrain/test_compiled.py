"""Compiled blocks give the losses and gradients of eager ones, whatever the masks of a step."""

from __future__ import annotations

import pytest
import torch

from core_mri.config import load_config
from pretrain.config import PretrainConfig
from pretrain.objectives import Batch, create_objective
from pretrain.packed import Branch, transform_block

NOW = {"teacher_temperature": 0.04, "koleo_weight": 0.0}


def model_of(compiled, drop_path):
    torch.manual_seed(0)
    content = {
        "registry": "-", "out": "-", "steps": 10, "batch_size": 8, "model": "vit_micro_patch8",
        "drop_path": drop_path, "layer_scale": 0.1 if drop_path else 1e-5, "compile": compiled,
        "views": {"global_size": 32, "local_size": 16, "num_local": 2},
        "objective": {"koleo_group": 4, "num_prototypes": 64, "head_hidden": 64,
                      "head_bottleneck": 32, "teacher_temperature_warmup": 0},
        "optimizer": {"warmup_steps": 0},
    }  # fmt: skip
    return create_objective(load_config(PretrainConfig, content)).train()


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    views = (torch.rand(8, 2, 1, side, side, generator=generator) for side in (32, 16))
    return Batch(*views, torch.rand(8, 2, 4, 4, generator=generator) < 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("drop_path", [0.0, 0.3])
def test_eager_equals_compiled(drop_path):
    eager, compiled = model_of(False, drop_path), model_of(True, drop_path)
    for seed in range(3):
        outs = []
        for model in (eager, compiled):
            torch.manual_seed(seed)  # of stochastic depth
            model.zero_grad()
            outs.append(model(batch(seed), NOW))
            outs[-1]["loss"].backward()
        for name in ("loss", "dino", "ibot"):
            torch.testing.assert_close(outs[0][name], outs[1][name], rtol=1e-5, atol=0)
        for one, other in zip(
            eager.student.parameters(), compiled.student.parameters(), strict=True
        ):
            assert (one.grad - other.grad).norm() <= 1e-3 * one.grad.norm().clamp_min(1e-12)


def test_a_compiled_block_leaves_its_input_alone():
    # Its backward pass may recompute from there; on a GPU autograd found the input changed.
    model = model_of(True, 0.3)
    block = model.teacher_encoder.vit.blocks[0]
    x = torch.rand(24, block.norm1.weight.numel())
    rows = torch.arange(16)
    branch = Branch(rows, [(4, 4)], None, rows, [16], [1.5])
    before = x.clone()
    run = torch.compile(transform_block, backend="aot_eager", dynamic=False)
    with torch.no_grad():
        found = run(block, x, [(6, 4)], [None], branch, branch)
        assert torch.equal(x, before)
        expected = transform_block(block, x, [(6, 4)], [None], branch, branch)
    torch.testing.assert_close(found, expected)
