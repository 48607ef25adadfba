"""Do patches of a slice still differ, and as they did before? Cosines between all of its patches.

DINOv3 (arXiv 2508.10104) saw dense features decay while the class token still improved; the matrix
of cosines between patches, compared with that of an earlier teacher, shows it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from core_mri.models.encoder import Encoder


class PatchWatch:
    """Compares the teacher's patches of some fixed slices with those of an earlier teacher.

    Args:
        images: [N, 1, S, S] in [0, 1], the slices.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.reference: Tensor | None = None

    @torch.no_grad()
    def measure(self, encoder: Encoder, *, renew: bool) -> dict[str, Tensor]:
        """Figures of the teacher as it is.

        Args:
            encoder: Of the teacher.
            renew: Take it as the earlier teacher from now on.

        Returns:
            Scalars ``patch_cosine`` (mean cosine between different patches of a slice) and
            ``patch_drift`` (root mean square change of these cosines; 0 for a new reference).
        """
        images = self.images.to(next(encoder.parameters()).device)
        patches = encoder(images).patches.flatten(1, 2).float()  # [N, h * w, D]
        unit = functional.normalize(patches, dim=-1)
        gram = unit @ unit.mT  # [N, h * w, h * w]
        if renew or self.reference is None or self.reference.shape != gram.shape:
            self.reference = gram
        num = gram.shape[-1]
        off_diagonal = gram.sum((-2, -1)) - gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        return {
            "patch_cosine": (off_diagonal / (num * (num - 1))).mean(),
            "patch_drift": (gram - self.reference.to(gram.device)).square().mean().sqrt(),
        }
