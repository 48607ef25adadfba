"""``timm:MODEL=FILE``: any plain ViT or DINOv3 of timm as our `Encoder`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_mri.errors import WeightsError
from core_mri.models.registry import EncoderConfig
from core_mri.weights.checkpoints import tensors_of
from core_mri.weights.layouts import fill_encoder

if TYPE_CHECKING:
    from torch import nn

    from core_mri.models.encoder import Encoder


def load_timm(
    name: str, content: Mapping[str, Any] | None, path: Path, *, image_size: int = 0
) -> tuple[Encoder, list[str]]:
    """An encoder from a file in timm's layout, or from timm's own download.

    Args:
        name: A model of timm, a pretrained tag included where it has one.
        content: The checkpoint; None lets timm download it.
        path: Its file, for messages.
        image_size: Side in pixels to resample the position table to.

    Returns:
        The encoder, and the names of the tensors that were dropped.

    Raises:
        WeightsError: WEIGHTS-03 when timm has no such model or it is no plain ViT, WEIGHTS-02 for
            tensors that do not fit.
    """
    import timm
    from timm.models import eva, vision_transformer

    from core_mri.models.encoder import Encoder

    if not timm.is_model(name):
        raise WeightsError(
            "WEIGHTS-03", f"timm has no model {name!r}.", fix="See timm.list_models('vit*')."
        )
    model = timm.create_model(name, num_classes=0)
    config = _describe(name, model)
    if content is None:
        model = timm.create_model(name, num_classes=0, pretrained=True)
    encoder = Encoder(replace(config, image_size=image_size or config.image_size))
    tensors: dict[str, Any] = dict(model.state_dict())
    if content is not None:
        tensors = tensors_of(content, ("state_dict", "model"), path)
    dropped = [key for key in tensors if key.startswith("head.")]  # the classifier
    tensors = {key: tensor for key, tensor in tensors.items() if key not in dropped}
    convert = (
        eva.checkpoint_filter_fn
        if config.positions == "rotary"
        else vision_transformer.checkpoint_filter_fn
    )
    tensors = convert(tensors, encoder.vit)
    facts = model.pretrained_cfg
    fill_encoder(encoder, tensors, None, (facts["mean"], facts["std"]), path)
    return encoder, dropped


def _describe(name: str, model: nn.Module) -> EncoderConfig:
    """The sizes of a timm model, if our `Encoder` can be one."""
    from timm.layers import GluMlp, SwiGLU
    from timm.models.eva import Eva
    from timm.models.vision_transformer import Block, VisionTransformer
    from torch import nn

    vit: Any = model
    rotary = type(model) is Eva and "dinov3" in name
    plain = type(model) is VisionTransformer and all(type(block) is Block for block in vit.blocks)
    mlp = vit.blocks[0].mlp if plain or rotary else None
    gated = isinstance(mlp, GluMlp | SwiGLU)
    if mlp is None or not (gated or isinstance(mlp.act, nn.GELU)):
        raise WeightsError(
            "WEIGHTS-03",
            f"timm's {name} is a {type(model).__name__} with parts our encoder has not; plain "
            "ViTs with GELU or SwiGLU and DINOv3 can be loaded.",
        )
    first = vit.blocks[0]
    hidden = mlp.fc2.in_features
    has_class = vit.cls_token is not None
    registers = 0 if vit.reg_token is None else vit.reg_token.shape[1]
    scaled = rotary or hasattr(first.ls1, "gamma")
    return EncoderConfig(
        embed_dim=vit.embed_dim,
        depth=len(vit.blocks),
        num_heads=first.attn.num_heads,
        patch_size=vit.patch_embed.patch_size[0],
        image_size=vit.patch_embed.img_size[0],
        num_registers=registers,
        layer_scale=1e-5 if scaled else 0.0,
        pool="token" if has_class else "mean",
        class_token=has_class,
        positions="rotary"
        if rotary
        else "patches"
        if vit.no_embed_class or not has_class
        else "all",
        mlp_width=hidden,
        gated_mlp=gated,
        norm_eps=first.norm1.eps,
        mean=0.0,
        std=1.0,
    )
