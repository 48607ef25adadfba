"""How long the steps of Ray workers wait for slices of a registry.

    python tests/benchmarks/real_cpu_registry.py --out runs/real_cpu    # once; real scans
    python tests/benchmarks/bench_feed.py --registry runs/real_cpu/registry

The first steps of ``pretrain/configs/real_cpu.yaml`` on 1, 2 and 4 workers of one Ray cluster of
this machine, with and without a process that reads ahead for each worker. ``wait`` is the part of
the time in which a worker waits for slices, mean over workers, and that of the slowest; five steps
warm up. ``read`` is the speed of reading alone, without ahead-reading processes or steps. The
registry is not written to. Workers beyond the cores of the machine share them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core_mri.config import load_config, to_mapping
from core_mri.devices import available_cores, is_main, rank, world_size
from core_mri.launch import Workers, launch, ray_cluster
from pretrain.config import CONFIGS, PretrainConfig

WARMUP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--loader-workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    config = replace(
        load_config(PretrainConfig, CONFIGS / "real_cpu.yaml"),
        registry=arguments.registry.absolute(),
        device="cpu",
    )
    print(f"{arguments.steps} steps of {config.batch_size} slices, {available_cores()} cores")
    print("workers  reading ahead  images/s   wait  slowest   read alone, slices/s")
    with tempfile.TemporaryDirectory() as folder, ray_cluster(None, max(arguments.workers)):
        for ahead in arguments.loader_workers:
            for number in arguments.workers:
                found = Path(folder, "found.json")
                payload = {
                    "config": to_mapping(replace(config, loader_workers=ahead)),
                    "steps": arguments.steps,
                    "found": str(found),
                }
                workers = Workers(launcher="ray", num_workers=number, max_failures=0)
                launch("bench_feed:measure", payload, workers, storage=Path(folder, "launcher"))
                row = json.loads(found.read_text())
                print(
                    f"{number:7}  {ahead:13}  {row['images_per_second']:8.1f}  {row['mean']:5.1%}  "
                    f"{row['slowest']:7.1%}   {row['read']:20.0f}",
                    flush=True,
                )


def measure(payload: Mapping[str, Any]) -> None:
    """What every worker runs."""
    import torch
    import torch.distributed as dist

    from pretrain.data import batches, open_slices
    from pretrain.train import Trainer

    config, steps = load_config(PretrainConfig, payload["config"]), payload["steps"]
    dataset = open_slices(config)
    trainer = Trainer(config, dataset)
    newest = trainer.step(0)
    for step in range(1, WARMUP):
        newest = trainer.step(step)
    waited, started = 0.0, time.perf_counter()
    for step in range(WARMUP, WARMUP + steps):
        newest = trainer.step(step)
        waited += newest["wait_seconds"]
    seconds = time.perf_counter() - started
    alone = batches(
        dataset, replace(config, loader_workers=0), start=WARMUP + steps, rank=rank(),
        world_size=world_size(),
    )  # fmt: skip
    started = time.perf_counter()
    num_read = sum(len(next(alone)) for _ in range(steps))
    read = num_read / (time.perf_counter() - started)
    found = torch.tensor([[waited / seconds, read]])
    everyone = [found.clone() for _ in range(world_size())]
    if world_size() > 1:
        dist.all_gather(everyone, found)
    if is_main():
        table = torch.cat(everyone)
        row = {
            "images_per_second": config.batch_size * steps / seconds,
            "mean": table[:, 0].mean().item(),
            "slowest": table[:, 0].max().item(),
            "read": table[:, 1].sum().item(),
        }
        Path(payload["found"]).write_text(json.dumps(row))


if __name__ == "__main__":
    main()
