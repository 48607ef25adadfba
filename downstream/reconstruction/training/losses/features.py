"""Distance in the feature space of a frozen encoder; late, small, and of labelled slices only.

    loss = mean over patches of 1 - cos(E(|x|), E(r))

It asks for structures an encoder tells apart, and can invent them: its weight is limited to
`MAX_WEIGHT`, and it starts after the image is nearly right.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from core_mri.models.conditioned import as_images
from core_mri.models.encoder import Encoder

MAX_WEIGHT = 0.05
STARTS = 0.7
"""Part of the training that is done without it."""


def feature_loss(encoder: Encoder, magnitude: Tensor, reference: Tensor) -> Tensor:
    """The loss of each slice, ``[S]``.

    Args:
        encoder: Frozen.
        magnitude: Estimate ``[S, h, w]``.
        reference: ``[S, h, w]``.
    """
    found = encoder(as_images(magnitude, encoder)).patches
    wanted = encoder(as_images(reference, encoder)).patches.detach()
    return 1 - functional.cosine_similarity(found, wanted, dim=-1).mean((1, 2))
