"""Memory of two workers that divide the networks (FSDP2), against two that have all of them each.

One table in GB for each process: weights, gradients, moments and teacher after two steps, by their
tensors; then what its resident memory grew by since before the networks were made, after a step and
at most during one. One thread each, gloo, float32, LayerScale 1e-5, seed 0, Linux.

    python tests/benchmarks/bench_sharding.py [--model vit_base_patch16] [--images 8] [--side 32]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from core_mri.config import load_config
from core_mri.training.sharding import local
from pretrain.config import CONFIGS, PretrainConfig
from pretrain.memory_need import memory_need
from pretrain.objectives import Batch, create_objective
from pretrain.optimization import Optimization
from pretrain.sharding import Shared

WORKERS = 2
NOW = {
    "learning_rate": 1e-4, "weight_decay": 0.04, "teacher_momentum": 0.99,
    "teacher_temperature": 0.04, "koleo_weight": 0.1,
}  # fmt: skip


def resident(name: str) -> float:
    """A line of the kernel's account of this process, GB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 / 1e9
    raise ValueError(name)


def tidy() -> None:
    """Give freed memory back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def gigabytes(tensors: Iterable[Tensor]) -> float:
    return sum(local(tensor).nbytes for tensor in tensors) / 1e9


def measure(rank: int, store: str, config: PretrainConfig) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORKERS)
    before = resident("VmRSS")
    torch.manual_seed(config.seed)
    model = create_objective(config).train()
    shared = Shared(model, config, "float32")
    optimization = Optimization(model, config.optimizer)
    side, count = config.views.global_size, config.batch_size
    for step in range(2):
        tidy()
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest use so far
        optimization.clear()
        masks = torch.from_numpy(model.sample_masks(range(count)))
        batch = Batch(
            torch.rand(count, 2, 1, side, side), torch.rand(count, 0, 1, side, side), masks
        )
        shared(batch, NOW, shared.teach(batch, NOW))["loss"].backward()
        optimization.update(config.optimizer.freeze_prototypes_steps + step, NOW)
    highest = resident("VmHWM") - before
    tidy()
    student = list(model.student.parameters())
    moments = [s[m] for s in optimization.adamw.state.values() for m in ("exp_avg", "exp_avg_sq")]
    parts = [
        gigabytes(student), gigabytes([p.grad for p in student if p.grad is not None]),
        gigabytes(moments), gigabytes(model.teacher.parameters()),
    ]  # fmt: skip
    foretold = memory_need(config, "float32", WORKERS).total / 1e9
    row = [*parts, sum(parts), resident("VmRSS") - before, highest, foretold]
    print(f"{config.sharding:8}", *(f"{number:9.2f}" for number in row), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_base_patch16")
    parser.add_argument("--images", type=int, default=8, help="of a worker")
    parser.add_argument("--side", type=int, default=32, help="of two global views, px")
    arguments = parser.parse_args()
    base = load_config(PretrainConfig, CONFIGS / "base_8gpu.yaml")
    config = replace(
        base,
        model=arguments.model,
        batch_size=arguments.images,
        compile=False,
        drop_path=0.0,
        views=replace(base.views, global_size=arguments.side, num_local=0),
    )
    names = ("weights", "gradients", "moments", "teacher", "sum", "resident", "highest", "foretold")
    print(f"{'':8}", *(f"{name:>9}" for name in names))
    for sharding in ("none", "fsdp"):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(measure, (f"{folder}/store", replace(config, sharding=sharding)), WORKERS)


if __name__ == "__main__":
    main()
