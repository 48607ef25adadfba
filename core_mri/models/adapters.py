"""Bottleneck adapters inside a ViT: few weights that move while the encoder's own stay.

Places and sizes are MRI-CORE's (its public few-shot code): in the first two and the last two
blocks, one adapter after the attention and one beside the MLP, a quarter as wide as a token. With
``A(x) = up(gelu(down(x)))`` a block becomes

    attention:  y = attn(norm1(x)),  x <- x + y + A1(y)
    MLP:        z = norm2(x),        x <- x + mlp(z) + A2(z) / 2

Here `up` starts at zero, so that an adapted encoder starts as the encoder it was (Houlsby et al.,
arXiv 1902.00751, ask for a near-identity start; MRI-CORE's starts at random).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn
from torch.nn import functional

from core_mri.models.linear import Linear
from core_mri.models.registry import AdapterConfig

if TYPE_CHECKING:
    from core_mri.models.encoder import Encoder

BESIDE_MLP = 0.5
"""Weight of the adapter beside the MLP."""


class Adapter(nn.Module):
    """``up(gelu(down(x)))``, [..., D] -> [..., D]; zero at first."""

    def __init__(self, embed_dim: int, width: int) -> None:
        super().__init__()
        self.down = Linear(embed_dim, width)
        self.up = Linear(width, embed_dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """What is added to the tokens."""
        return cast("Tensor", self.up(functional.gelu(self.down(tokens))))


def add_adapters(encoder: Encoder, config: AdapterConfig) -> None:
    """Put adapters into `encoder`; the names of its own tensors stay what they are.

    Args:
        encoder: Changed in place; ``encoder.adapters`` becomes `config`.
        config: Blocks and width.
    """
    for index in config.blocks:
        block = encoder.vit.blocks[index]
        for layer, hook in ((block.attn, _after), (block.mlp, _beside)):
            layer.adapter = Adapter(encoder.embed_dim, config.width).to(encoder.mask_token.device)
            layer.register_forward_hook(hook)
    encoder.adapters = config


def mri_core_places(encoder: Encoder, ratio: float = 0.25) -> AdapterConfig:
    """The first two and the last two blocks, `ratio` times as wide as a token."""
    depth = encoder.depth
    blocks = sorted({0, min(1, depth - 1), max(0, depth - 2), depth - 1})
    return AdapterConfig(blocks=tuple(blocks), width=max(1, round(encoder.embed_dim * ratio)))


def _after(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + cast("nn.Module", layer.adapter)(output)


def _beside(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + BESIDE_MLP * cast("nn.Module", layer.adapter)(inputs[0])
