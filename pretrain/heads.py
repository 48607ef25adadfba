"""The projection head between features and prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pretrain.linear import linear
from pretrain.prototypes import prototype_logits


class ProjectionHead(nn.Module):
    """MLP, L2 norm, prototypes of unit length (DINO, arXiv 2104.14294; sizes of DINOv2).

    ``logits = normalize(mlp(x)) @ normalize(prototypes).T``: the weight-normalized last layer of
    DINO with its gain fixed to 1, so logits are cosines in [-1, 1] and cannot grow. A plain weight
    instead of `weight_norm` keeps the head deep-copyable.

    Args:
        embed_dim: D of the features.
        num_prototypes: K.
        hidden: Width of the two hidden layers.
        bottleneck: Width of the normalized vector.
    """

    def __init__(
        self, embed_dim: int, num_prototypes: int, *, hidden: int = 2048, bottleneck: int = 256
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Linear(bottleneck, num_prototypes, bias=False)
        nn.init.trunc_normal_(self.prototypes.weight, std=0.02)

    def codes(self, features: Tensor) -> Tensor:
        """Float32 unit rows [N, bottleneck] of features [N, D]; N may be 0."""
        x = features
        for layer in self.mlp:
            x = linear(x, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer(x)
        return functional.normalize(x.float(), dim=-1)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """The teacher's logits [N, K] of features [N, D]; N may be 0.

        The student's never exist as a whole: see `pretrain.prototypes.prototype_loss`.
        """
        return prototype_logits(self.codes(features), self.prototypes.weight)
