"""The verb `core-mri embed`."""

from __future__ import annotations

import logging
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Frozen features of scans: ``SOURCE IMAGE --out F.npz|F.parquet|FOLDER [flags]``."""
    import tyro

    from downstream.embed import EmbedConfig, embed

    config = tyro.cli(EmbedConfig, prog="core-mri embed", args=list(arguments))
    logging.getLogger("downstream").setLevel(logging.INFO)
    done = embed(config)
    print(
        f"{done.volumes} volumes, {done.slices} slices embedded"
        + (f"; {done.earlier} volumes were there already" if done.earlier else "")
    )
    for code, count in sorted(done.failed.items()):
        print(f"left out: {count} with {code}, see above")
    print(config.out)
    return 0
