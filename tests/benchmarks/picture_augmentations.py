"""A picture of every augmentation at the ends of its range, on slices of a registry.

    python tests/benchmarks/picture_augmentations.py REGISTRY OUT.png [--size 224] [--rows 6]

A row for each slice (of as many regions as there are): whole, then each augmentation weakest and
strongest.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from core_mri.pictures import contact_sheet
from data_registry.catalogue import Registry
from data_registry.slices import SliceDataset
from pretrain.augmentations import AUGMENTATIONS, NUM_DRAWS, augment
from pretrain.config import ViewsConfig
from pretrain.crops import crop_resize
from pretrain.upload import upload

NEVER = {augmentation.probability: 0.0 for augmentation in AUGMENTATIONS.values()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("registry", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rows", type=int, default=6)
    options = parser.parse_args()
    dataset = SliceDataset(Registry.open(options.registry), min_foreground=0.2)
    numbers, strata = dataset.volume_numbers(), dataset.strata()
    images, titles = [], []
    regions: set[str] = set()
    for volume in np.unique(strata, return_index=True)[1]:
        region = dataset.volumes[int(volume)].region
        if region in regions or len(regions) == options.rows:
            continue
        regions.add(region)
        own = np.flatnonzero(numbers == volume)
        stored = dataset.stored(int(own[len(own) // 2]))
        whole = upload([stored], torch.device("cpu"))
        box = torch.tensor([[[0, 0, *stored.payload.shape]]])
        view = crop_resize(whole, box, options.size)[0]
        images.append(view[0].numpy())
        titles.append(f"{region}")
        for name, augmentation in AUGMENTATIONS.items():
            for end, amount in (("low", 0.0), ("high", 0.999)):
                draws = np.random.default_rng(3).random((1, NUM_DRAWS))
                first = 0
                for other, kind in AUGMENTATIONS.items():
                    if other == name:
                        draws[0, first + 1] = amount
                        if name in ("ringing", "low field", "window"):
                            draws[0, first + 2] = amount
                    first += 1 + kind.num_draws
                if name in ("low field", "ringing"):  # the lower, the stronger
                    end = {"low": "high", "high": "low"}[end]
                changed = view.clone()
                augment(
                    changed, draws, replace(ViewsConfig(), **NEVER | {augmentation.probability: 1})
                )
                images.append(changed[0].numpy())
                titles.append(f"{name}, {end}")
    figure = contact_sheet(images, titles, columns=1 + 2 * len(AUGMENTATIONS))
    figure.savefig(options.out, dpi=200)


if __name__ == "__main__":
    main()
