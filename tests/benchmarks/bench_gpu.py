"""Pretraining steps of ViT-S, B and L on one GPU: 2 x 224 + 8 x 96 px, with and without drop path.

The packaged `base_8gpu` with a batch for one device, on the slices of a registry, by
`pretrain.bench.bench` (images/s, MFU, data wait, share of the heads, memory). One line of JSON for
each; a batch that does not fit says which one to try.

    python tests/benchmarks/bench_gpu.py REGISTRY [--steps 50] [--models vit_base_patch16:128 ...]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from core_mri.config import load_config
from core_mri.errors import RunError
from pretrain.bench import bench
from pretrain.config import CONFIGS, PretrainConfig

MODELS = ("vit_small_patch16:256", "vit_base_patch16:128", "vit_large_patch16:64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("registry", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL:BATCH_SIZE")
    arguments = parser.parse_args()
    base = load_config(PretrainConfig, CONFIGS / "base_8gpu.yaml")
    for pair in arguments.models:
        model, batch_size = pair.split(":")
        for drop_path in (0.0, base.drop_path):
            config = replace(
                base,
                registry=arguments.registry,
                model=model,
                batch_size=int(batch_size),
                drop_path=drop_path,
            )
            try:
                row = asdict(bench(config, arguments.steps))
            except RunError as error:
                row = {"model": model, "batch_size": int(batch_size), "error": str(error)}
            print(json.dumps({"drop_path": drop_path, **row}), flush=True)


if __name__ == "__main__":
    main()
