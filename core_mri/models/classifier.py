"""A classifier of slices, volumes or patients: encoder, pooling, and the names of its classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core_mri.models.encoder import Encoder


class AttentionPool(nn.Module):
    """Gated attention, a weighted mean whose weights are learned.

    ``a = softmax_s(w . (tanh(V h_s) * sigmoid(U h_s)))``, ``z = sum_s a_s h_s``. Source: Ilse et
    al., Attention-based deep multiple instance learning, ICML 2018 (arXiv 1802.04712).

    Args:
        width: Of the vectors h, D.
        hidden: Rows of V and U.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.look = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.weigh = nn.Linear(hidden, 1, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """[S, D] to [D]."""
        weights = self.weigh(torch.tanh(self.look(vectors)) * torch.sigmoid(self.gate(vectors)))
        return (torch.softmax(weights, 0) * vectors).sum(0)


class Classifier(nn.Module):
    """``images [S, 1, N, N] in [0, 1] -> logits [C]``, or ``[S, C]`` at the level of slices.

    Args:
        encoder: Its class tokens stand for slices.
        classes: Names, C of them.
        level: ``slice``, ``volume`` or ``patient``: what has one class.
        image_size: Side in pixels at which it was trained.
        attention: Hidden width of the attention over slices; 0 is the mean over the slices of a
            volume, then over the volumes of a patient.
    """

    mean: Tensor
    std: Tensor
    temperature: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        classes: Sequence[str],
        level: str,
        image_size: int,
        attention: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.classes = tuple(classes)
        self.level = level
        self.image_size = image_size
        self.attention = attention
        self.pool = AttentionPool(encoder.embed_dim, attention) if attention else None
        self.head = nn.Linear(encoder.embed_dim, len(self.classes))
        self.register_buffer("mean", torch.zeros(encoder.embed_dim))
        self.register_buffer("std", torch.ones(encoder.embed_dim))
        self.register_buffer("temperature", torch.ones(()))

    def logits(self, bags: Sequence[Tensor]) -> Tensor:
        """[C] of one example.

        Args:
            bags: Class tokens [S, D] of each of its volumes.
        """
        scaled = [(tokens - self.mean) / self.std for tokens in bags]
        if self.pool is not None:
            pooled: Tensor = self.pool(torch.cat(scaled))
        else:
            pooled = torch.stack([tokens.mean(0) for tokens in scaled]).mean(0)
        found: Tensor = self.head(pooled)
        return found

    def probabilities(self, bags: Sequence[Tensor]) -> Tensor:
        """Calibrated class probabilities of tokens [S, D] a volume: [C], of slices [S, C]."""
        if self.level == "slice":
            rows = [self.logits([token[None]]) for tokens in bags for token in tokens]
            return torch.softmax(torch.stack(rows) / self.temperature, -1)
        return torch.softmax(self.logits(bags) / self.temperature, -1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the slices [S, 1, N, N] of one volume; N is a multiple of the patch size."""
        tokens = self.encoder(images).cls
        if self.level == "slice":
            return torch.stack([self.logits([token[None]]) for token in tokens])
        return self.logits([tokens])
