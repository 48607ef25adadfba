"""SAM, MedSAM and MRI-CORE's SAM home as our `PromptableSegmenter` and `SamEncoder`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_mri.errors import WeightsError
from core_mri.models import create_sam
from core_mri.models.registry import SamConfig
from core_mri.weights.checkpoints import tensors_of
from core_mri.weights.folding import IDENTITY, IMAGENET, SAM, Normalization, fold
from core_mri.weights.layouts import HEADS, flatten_names
from core_mri.weights.strict import fill

if TYPE_CHECKING:
    from torch import Tensor

    from core_mri.models.encoder import Encoder
    from core_mri.models.promptable import PromptableSegmenter
    from core_mri.models.sam import SamEncoder

NORMALIZATIONS: dict[str, Normalization] = {"sam": SAM, "medsam": IDENTITY}
"""MedSAM was trained on images in [0, 1] as they are (bowang-lab/MedSAM, MedSAM_Inference.py)."""
PATCH = "patch_embed.proj"
WINDOW = 14
DROPPED = r"^(cls_token|mask_token|norm\.|dino_head\.|ibot_head\.)"
"""Of MRI-CORE in the SAM home, which has no class token and no last norm."""


def load_sam(name: str, content: Mapping[str, Any], path: Path) -> PromptableSegmenter:
    """SAM or MedSAM of any size, all 314 tensors (ViT-B) of them.

    Raises:
        WeightsError: WEIGHTS-02 for tensors that do not fit.
    """
    tensors = tensors_of(content, ("model", "state_dict"), path)
    config = _sam_sizes(tensors, path)
    model = create_sam(config)
    fill(model, _folded(tensors, f"image_encoder.{PATCH}", NORMALIZATIONS[name]), path)
    return model


def as_plain_vit(sam: SamEncoder) -> Encoder:
    """SAM's image encoder as a plain ViT, to go on training, as MRI-CORE did.

    Its attention is over all patches in every block, relative positions and neck are left out. What
    SAM lacks begins neutral: a class token of zeros without position, and a last norm.

    Args:
        sam: Of any size.

    Returns:
        The encoder, with a table of positions for SAM's grid.
    """
    import torch

    from core_mri.models.encoder import Encoder
    from core_mri.models.registry import EncoderConfig

    own = sam.config
    encoder = Encoder(
        EncoderConfig(
            embed_dim=own.embed_dim,
            depth=own.depth,
            num_heads=own.num_heads,
            patch_size=own.patch_size,
            image_size=own.image_size,
            mean=0.0,
            std=1.0,
        )
    )
    named = {
        f"vit.{key.replace('.lin', '.fc')}": tensor
        for key, tensor in sam.state_dict().items()
        if not key.startswith("neck.") and ".rel_pos" not in key
    }
    table = named["vit.pos_embed"].flatten(1, 2)
    named["vit.pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], 1)
    fresh = encoder.state_dict()
    named |= {key: fresh[key] for key in ("mask_token", "vit.norm.weight", "vit.norm.bias")}
    named["vit.cls_token"] = torch.zeros_like(fresh["vit.cls_token"])
    encoder.load_state_dict(named)
    return encoder


def load_mri_core(
    content: Mapping[str, Any],
    path: Path,
    *,
    position: str,
    normalization: str = "",
    sam: tuple[Mapping[str, Any], Path] | None = None,
) -> tuple[SamEncoder | PromptableSegmenter, list[str]]:
    """MRI-CORE inside SAM's windowed encoder, without relative positions, as its code has it.

    Args:
        content: MRI-CORE's checkpoint.
        path: Its file, for messages.
        position: ``fixed`` uses MRI-CORE's position table; ``legacy`` does what the published code
            does, which never loads it: zeros, or SAM's table with `sam`.
        normalization: ``none`` for images in [0, 1] as they are.
        sam: SAM's checkpoint and file, for neck, prompt encoder and mask decoder.

    Returns:
        A `SamEncoder` without neck, or with `sam` a `PromptableSegmenter`; and what was dropped.

    Raises:
        WeightsError: WEIGHTS-02 for tensors that do not fit.
    """
    import torch

    from core_mri.models.sam import SamEncoder

    tensors = flatten_names(tensors_of(content, ("teacher", "student", "model"), path))
    dropped = [key for key in tensors if re.search(DROPPED, key)]
    kept = {k.replace(".fc", ".lin"): v for k, v in tensors.items() if k not in dropped}
    try:
        width, _, patch, _ = kept[f"{PATCH}.weight"].shape
        depth = 1 + max(int(key.split(".")[1]) for key in kept if key.startswith("blocks."))
        table = kept["pos_embed"][:, 1:]
    except (KeyError, ValueError) as error:
        raise WeightsError(
            "WEIGHTS-02", f"{path}: no MRI-CORE encoder, it lacks {error}."
        ) from None
    side = round(table.shape[1] ** 0.5)
    kept["pos_embed"] = table.reshape(1, side, side, width)
    if position == "legacy":
        kept["pos_embed"] = torch.zeros_like(kept["pos_embed"])
    rest: dict[str, Tensor] = {}
    if sam is not None:
        rest = tensors_of(sam[0], ("model", "state_dict"), sam[1])
        if position == "legacy":
            kept["pos_embed"] = rest["image_encoder.pos_embed"]
    config = SamConfig(
        embed_dim=width,
        depth=depth,
        num_heads=HEADS.get(width) or max(1, width // 64),
        global_blocks=tuple((i + 1) * depth // 4 - 1 for i in range(4)),
        patch_size=patch,
        image_size=patch * kept["pos_embed"].shape[1],
        window_size=WINDOW,
        relative_positions=False,
        normalize_padding=True,
        out_channels=rest["image_encoder.neck.0.weight"].shape[0] if rest else 0,
    )
    kept = _folded(kept, PATCH, IDENTITY if normalization == "none" else IMAGENET)
    if not rest:
        encoder = SamEncoder(config)
        fill(encoder, kept, path)
        return encoder, dropped
    own = re.compile(r"^(prompt_encoder|mask_decoder|image_encoder\.neck)\.")
    model = create_sam(config)
    named = {f"image_encoder.{key}": tensor for key, tensor in kept.items()}
    fill(model, {key: t for key, t in rest.items() if own.match(key)} | named, path)
    return model, dropped


def _folded(
    tensors: Mapping[str, Tensor], patch: str, normalization: Normalization
) -> dict[str, Tensor]:
    weight, bias = fold(tensors[f"{patch}.weight"], tensors[f"{patch}.bias"], normalization)
    return {**tensors, f"{patch}.weight": weight, f"{patch}.bias": bias}


def _sam_sizes(tensors: Mapping[str, Tensor], path: Path) -> SamConfig:
    """What the shapes tell: global blocks have tables of the whole grid, the others of a window."""
    try:
        width, _, patch, _ = tensors[f"image_encoder.{PATCH}.weight"].shape
        grid = tensors["image_encoder.pos_embed"].shape[1]
        channels = tensors["image_encoder.neck.0.weight"].shape[0]
        tables = {
            int(key.split(".")[2]): tensor.shape
            for key, tensor in tensors.items()
            if key.endswith("attn.rel_pos_h")
        }
        tables[0]
    except (KeyError, ValueError) as error:
        raise WeightsError(
            "WEIGHTS-02",
            f"{path}: no SAM, it lacks {error}; it holds {', '.join(list(tensors)[:5])}, ...",
        ) from None
    side = min(length for length, _ in tables.values())
    return SamConfig(
        embed_dim=width,
        depth=len(tables),
        num_heads=width // tables[0][1],
        global_blocks=tuple(
            i for i, (length, _) in sorted(tables.items()) if length == 2 * grid - 1
        ),
        patch_size=patch,
        image_size=patch * grid,
        window_size=(side + 1) // 2,
        out_channels=channels,
    )
