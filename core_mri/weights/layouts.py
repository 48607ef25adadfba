"""Plain ViTs of other projects as our `Encoder`: which tensors they have and what is dropped.

Conversion of names, and resampling of positions (bicubic, antialiased) and of patches
(pseudo-inverse, Beyer et al., arXiv 2212.08013), is timm's wherever it has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_mri.errors import WeightsError
from core_mri.models.registry import EncoderConfig
from core_mri.weights.checkpoints import tensors_of
from core_mri.weights.folding import IMAGENET, Normalization, fold
from core_mri.weights.strict import fill

if TYPE_CHECKING:
    from torch import Tensor, nn

    from core_mri.models.encoder import Encoder

Tensors = dict[str, "Tensor"]

HEADS = {192: 3, 1408: 16, 1536: 24, 4096: 32}
"""Heads by width where they are not 64 wide; the number is in no checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is known of the checkpoints of one project."""

    containers: tuple[str, ...] = ()
    """Names under which the tensors may lie, best first."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Pattern of names without a place in the encoder, and why that is no loss."""
    normalization: Normalization = IMAGENET
    """What the network expects of an RGB image in [0, 1]."""
    heads: Mapping[int, int] = field(default_factory=dict)
    """Heads by width where they differ from `HEADS`."""


PRETRAINING_HEADS = "prototype head of the pretraining loss"
FAMILIES: dict[str, Family] = {
    "mri-core": Family(
        containers=("teacher", "student", "model"),
        dropped={r"dino_head\.|ibot_head\.": PRETRAINING_HEADS},
    ),
    "dinov2": Family(
        containers=("teacher", "model", "state_dict"),
        dropped={r"dino_head\.|ibot_head\.": PRETRAINING_HEADS},
    ),
    "dinov3": Family(
        containers=("teacher", "model", "state_dict"),
        dropped={
            r"dino_head\.|ibot_head\.": PRETRAINING_HEADS,
            r"rope_embed\.periods$": "constant, made anew",
            r"\.bias_mask$": "constant: keys have no bias",
            r"local_cls_norm\.": "used on local crops in pretraining only",
        },
        heads={1280: 20},
    ),
    "mae": Family(
        containers=("model",),
        dropped={
            r"decoder_": "decoder of the pretraining loss",
            r"mask_token$": "token of the decoder, of the decoder's width",
        },
        heads={1280: 16},
    ),
    "ijepa": Family(containers=("target_encoder", "encoder"), heads={1280: 16}),
    "hf-dinov2": Family(dropped={r"classifier\.": "classifier of ImageNet"}),
}


def load_plain_vit(
    name: str,
    content: Mapping[str, Any],
    path: Path,
    *,
    position: str = "fixed",
    branch: str = "",
    image_size: int = 0,
    patch_size: int = 0,
    num_heads: int = 0,
    normalization: str = "",
) -> tuple[Encoder, list[str]]:
    """An encoder from a checkpoint of one of `FAMILIES`.

    Args:
        name: The family.
        content: The checkpoint.
        path: Its file, for messages.
        position: ``legacy`` leaves the position table zero, as MRI-CORE's published code does.
        branch: The network to take where the file has several, instead of the family's choice.
        image_size: Side in pixels to resample the position table to; 0 keeps the grid.
        patch_size: Side in pixels to resample patches to; 0 keeps it.
        num_heads: Attention heads, where the width does not tell.
        normalization: ``none`` where images enter the network in [0, 1] as they are.

    Returns:
        The encoder, and the names of the tensors that were dropped.

    Raises:
        WeightsError: WEIGHTS-02 for tensors that do not fit, WEIGHTS-04 when there are none.
    """
    import torch

    from core_mri.models.encoder import Encoder

    family = FAMILIES[name]
    containers = (branch,) if branch else family.containers
    if branch and branch not in content:
        raise WeightsError(
            "WEIGHTS-03", f"{path}: no {branch!r}, only {', '.join(map(str, content))}."
        )
    tensors = flatten_names(tensors_of(content, containers, path))
    if name == "hf-dinov2":
        tensors = _from_hugging_face(tensors)
    dropped = [key for key in tensors if any(re.search(p, key) for p in family.dropped)]
    tensors = {key: tensor for key, tensor in tensors.items() if key not in dropped}
    config = _sizes(name, tensors, path, num_heads)
    patch = patch_size or config.patch_size
    grid = config.image_size // config.patch_size
    config = replace(config, patch_size=patch, image_size=image_size or grid * patch)
    encoder = Encoder(config)
    mask_token = tensors.get("mask_token", torch.zeros(1, config.embed_dim))
    if position == "legacy":
        tensors["pos_embed"] = torch.zeros_like(tensors["pos_embed"])
    chosen = ((0.0,) * 3, (1.0,) * 3) if normalization == "none" else family.normalization
    fill_encoder(
        encoder, _to_timm(name, tensors, mask_token, encoder.vit), mask_token, chosen, path
    )
    return encoder, dropped


def fill_encoder(
    encoder: Encoder,
    tensors: Tensors,
    mask_token: Tensor | None,
    normalization: Normalization,
    path: Path,
) -> None:
    """Fold the patch embedding of tensors in timm's names and put them into `encoder`."""
    import torch

    weight, bias = "patch_embed.proj.weight", "patch_embed.proj.bias"
    if tensors[weight].shape[1] == 3 and bias in tensors:
        tensors = dict(tensors)
        tensors[weight], tensors[bias] = fold(tensors[weight], tensors[bias], normalization)
    named = {f"vit.{key}": tensor for key, tensor in tensors.items()}
    empty = torch.zeros(encoder.embed_dim)
    named["mask_token"] = empty if mask_token is None else mask_token.reshape(-1)
    fill(encoder, named, path)


def flatten_names(tensors: Tensors) -> Tensors:
    """Names without ``backbone.`` and DINOv2's chunks C, ``blocks.C.N.``; N counts all blocks."""
    return {
        re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key.removeprefix("backbone.")): tensor
        for key, tensor in tensors.items()
    }


def _sizes(name: str, tensors: Tensors, path: Path, num_heads: int) -> EncoderConfig:
    """What the shapes tell about the network."""
    try:
        width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
        rotary = name == "dinov3"
        depth = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks."))
        gated = next((k for k in ("w12", "w1") if f"blocks.0.mlp.{k}.weight" in tensors), "")
        mlp = tensors[f"blocks.0.mlp.{gated or 'fc1'}.weight"].shape[0]
        registers = next(
            (tensors[k] for k in ("register_tokens", "storage_tokens") if k in tensors), None
        )
        has_class = "cls_token" in tensors
        patches = 14 * 14 if rotary else tensors["pos_embed"].shape[1] - has_class
    except (KeyError, ValueError) as error:
        raise WeightsError(
            "WEIGHTS-02",
            f"{path}: no {name} encoder, it lacks {error}; it holds "
            f"{', '.join(list(tensors)[:5])}, ...",
        ) from None
    heads = num_heads or FAMILIES[name].heads.get(width) or HEADS.get(width) or max(1, width // 64)
    num_registers = 0 if registers is None else registers.shape[-2]
    return EncoderConfig(
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        patch_size=patch,
        image_size=patch * isqrt(patches),
        num_registers=num_registers,
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in tensors else 0.0,
        pool="token" if has_class else "mean",
        class_token=has_class,
        positions="rotary" if rotary else "patches" if num_registers or not has_class else "all",
        mlp_width=mlp // 2 if gated == "w12" else mlp,
        gated_mlp=bool(gated),
        norm_eps=1e-5 if rotary else 1e-6,
        mean=0.0,
        std=1.0,
    )


def _to_timm(name: str, tensors: Tensors, mask_token: Tensor, vit: nn.Module) -> Tensors:
    """Names as in timm; positions and patches on the grid of `vit`."""
    from timm.models import eva, vision_transformer

    if name == "dinov3":
        return eva.checkpoint_filter_fn(dict(tensors), vit)
    if name in {"mri-core", "dinov2", "hf-dinov2"}:
        tensors = tensors | {"mask_token": mask_token}  # by which timm knows DINOv2
    return vision_transformer.checkpoint_filter_fn(dict(tensors), vit)


HUGGING_FACE = (
    (r"^dinov2(_with_registers)?\.", ""),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"mlp\.weights_in\.", "mlp.w12."),
    (r"mlp\.weights_out\.", "mlp.w3."),
    (r"^layernorm\.", "norm."),
)


def _from_hugging_face(tensors: Tensors) -> Tensors:
    """Names of `transformers` as those of DINOv2; query, key and value fused."""
    import torch

    renamed: Tensors = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        for pattern, target in HUGGING_FACE:
            key = re.sub(pattern, target, key)
        found = re.match(r"(blocks\.\d+)\.attention\.attention\.(query|key|value)\.(\w+)", key)
        if found:
            parts.setdefault(f"{found[1]}.attn.qkv.{found[3]}", {})[found[2]] = tensor
        else:
            renamed[key] = tensor
    for key, three in parts.items():
        renamed[key] = torch.cat(
            [three[part] for part in ("query", "key", "value") if part in three]
        )
    return renamed
