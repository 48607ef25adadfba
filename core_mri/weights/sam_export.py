"""Our tensors in the layout of Segment Anything's checkpoints (``image_encoder.*``).

SAM normalises an image of 0..255 in three channels before its encoder: ``(255 x - m_c) / s_c``.
Our patch embedding sees one channel, ``(x - mean) / std``. For a gray image the weights ``w_c`` and
bias ``b'`` of SAM's layout give the same tokens when

    w_c = w s_c / (3 * 255 std),    b' = b + sum(w) (mean(m_c) / 255 - mean) / std

since then ``sum_c w_c (255 x - m_c) / s_c + b' = w (x - mean) / std + b``. Patches do not cross the
border, so this is exact up to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from core_mri.errors import WeightsError

if TYPE_CHECKING:
    from core_mri.models.encoder import Encoder

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""SAM's normalisation of pixels 0..255 (`segment_anything.modeling.Sam`)."""
PREFIX = "image_encoder."


class SamLayout(NamedTuple):
    """Tensors for ``torch.save``, and what the layout has no place for."""

    tensors: dict[str, Tensor]
    """By SAM's names."""
    dropped: tuple[str, ...]
    """Names of our tensors that are not in it."""


def sam_layout(model: nn.Module, image_size: int = 1024) -> SamLayout:
    """Rename and reshape the tensors of a model.

    A promptable SAM keeps all its tensors. A plain ViT becomes SAM's image encoder without neck, as
    the public MRI-CORE weights are used: class token, registers and the last norm have no place
    there; LayerScale ``g`` goes into the layer before it, ``g (W x + b) = (g W) x + g b``, exactly;
    positions are resampled. Such weights attend within windows there, so features differ from ours.

    Args:
        model: A `PromptableSegmenter` or `SamEncoder` (kept at its own size), or an `Encoder`.
        image_size: Side in pixels that SAM will be built for; for an `Encoder` only.

    Raises:
        WeightsError: WEIGHTS-02 for a model of another kind.
    """
    from core_mri.models.encoder import Encoder
    from core_mri.models.promptable import PromptableSegmenter
    from core_mri.models.sam import SamEncoder

    own = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if isinstance(model, PromptableSegmenter) and isinstance(model.image_encoder, SamEncoder):
        return SamLayout(_three_channels(own, mean=0.0, std=1.0), ())
    if isinstance(model, SamEncoder):
        named = {PREFIX + name: tensor for name, tensor in own.items()}
        return SamLayout(_three_channels(named, mean=0.0, std=1.0), ())
    if isinstance(model, Encoder):
        return _plain(model, own, image_size)
    name = type(model).__name__
    if isinstance(model, PromptableSegmenter):
        name += f" with a {type(model.image_encoder).__name__}"
    raise WeightsError(
        "WEIGHTS-02",
        f"{name} has no form in SAM's layout.",
        fix="Export an encoder or a model with SAM's encoder, or choose torchscript or onnx: that "
        "layout has no place for the heads and necks of other models.",
    )


def _plain(model: Encoder, own: dict[str, Tensor], image_size: int) -> SamLayout:
    from timm.layers import resample_abs_pos_embed

    tensors: dict[str, Tensor] = {}
    dropped = ["mask_token"]
    for name, tensor in own.items():
        short = name.removeprefix("vit.")
        if short == "pos_embed":
            grid = image_size // model.patch_size
            patches = tensor[:, model.vit.num_prefix_tokens :]
            resampled = resample_abs_pos_embed(patches, [grid, grid], num_prefix_tokens=0)
            tensors[PREFIX + short] = resampled.unflatten(1, (grid, grid))
        elif short.startswith("patch_embed."):
            tensors[PREFIX + short] = tensor
        elif short.startswith("blocks."):
            layer, _, part = name.rpartition(".")
            if layer.endswith((".ls1", ".ls2")):
                continue
            scale = own.get(layer.replace("attn.proj", "ls1").replace("mlp.fc2", "ls2") + ".gamma")
            if scale is not None:
                tensor = tensor * (scale[:, None] if part == "weight" else scale)
            tensors[PREFIX + short.replace("mlp.fc", "mlp.lin")] = tensor
        elif short != "mask_token":
            dropped.append(name)
    return SamLayout(
        _three_channels(tensors, mean=model.config.mean, std=model.config.std), tuple(dropped)
    )


def _three_channels(tensors: dict[str, Tensor], *, mean: float, std: float) -> dict[str, Tensor]:
    """With the patch embedding for SAM's normalised color images; see the module."""
    weight_name, bias_name = (f"{PREFIX}patch_embed.proj.{part}" for part in ("weight", "bias"))
    weight, bias = tensors[weight_name].double(), tensors[bias_name].double()  # [D, 1, p, p], [D]
    stds = torch.tensor(PIXEL_STD, dtype=torch.float64)[:, None, None]
    offset = sum(PIXEL_MEAN) / 3 / 255 - mean
    return tensors | {
        weight_name: (weight * stds / (3 * 255 * std)).float(),
        bias_name: (bias + weight.sum((1, 2, 3)) * offset / std).float(),
    }
