"""LoRA: low-rank changes of the query and value projections, merged into the weights at the end.

``W = W0 + (alpha / r) B A`` for the rows of q and of v each, A [r, D] random, B [D, r] zero at
first (Hu et al., arXiv 2106.09685). It is kept as a parametrization of the ``qkv`` matrix, so the
merged weights are the very numbers that training used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core_mri.models.encoder import Encoder


class LowRank(nn.Module):
    """``qkv [3 D, D] -> qkv + (alpha / r) [B_q A_q; 0; B_v A_v]``."""

    def __init__(self, embed_dim: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.empty(2, rank, embed_dim))
        self.b = nn.Parameter(torch.zeros(2, embed_dim, rank))
        for matrix in self.a:
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def forward(self, qkv: Tensor) -> Tensor:
        """The changed matrix."""
        q, v = self.scale * self.b @ self.a
        return qkv + torch.cat([q, torch.zeros_like(q), v])


def add_lora(encoder: Encoder, rank: int, alpha: float) -> None:
    """Parametrize ``qkv`` of every block of `encoder`, in place."""
    for block in encoder.vit.blocks:
        low_rank = LowRank(encoder.embed_dim, rank, alpha).to(block.attn.qkv.weight)
        parametrize.register_parametrization(block.attn.qkv, "weight", low_rank)


def merge_lora(encoder: Encoder) -> None:
    """Write the changed matrices into the weights; the encoder is a plain one again."""
    for block in encoder.vit.blocks:
        if parametrize.is_parametrized(block.attn.qkv, "weight"):
            parametrize.remove_parametrizations(block.attn.qkv, "weight")
