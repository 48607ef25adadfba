"""Learning rates that fall from the head of a ViT to its patches."""

from __future__ import annotations

import re


def layer_multiplier(name: str, *, depth: int, decay: float, patch_embed: float = 1.0) -> float:
    """Factor of the learning rate of one parameter of an encoder.

    ``decay^(depth + 1 - l)`` with l = 0 for patches, positions, class, register and mask tokens,
    l = i + 1 in block i (0-based), l = depth + 1 for what follows the blocks (BEiT, arXiv
    2106.08254; DINOv2 takes 0.9 and 0.2, arXiv 2304.07193).

    Args:
        name: Of the parameter, with ``blocks.N.`` where it belongs to a block.
        depth: Number of blocks.
        decay: Factor from one layer to the one before it; 1 for none.
        patch_embed: Further factor of the patch embedding.
    """
    block = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    first = re.search(
        r"(?:^|\.)(?:patch_embed\.|pos_embed$|cls_token$|reg_token$|mask_token$)", name
    )
    layer = int(block[1]) + 1 if block else 0 if first else depth + 1
    factor = patch_embed if ".patch_embed." in f".{name}" else 1.0
    return float(factor * decay ** (depth + 1 - layer))
