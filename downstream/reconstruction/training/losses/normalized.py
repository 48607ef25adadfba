"""fastMRI's loss of its U-Net: L1 between normalized images.

    loss = mean |u(n(x)) - n(r)|,   n(v) = cut((v - mean x) / (std x + 1e-11), -6, 6)

x zero-filled image, r reference, u the network. Source: facebookresearch/fastMRI,
`fastmri/data/transforms.py` (UnetDataTransform) and `fastmri/pl_modules/unet_module.py`.
Shape letters: ``S`` slices, ``h w`` image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core_mri.physics.preparation import CLAMP, normalize, normalize_instance


def normalized_l1(
    network: Callable[[Tensor], Tensor], zero_filled: Tensor, reference: Tensor
) -> Tensor:
    """The loss of each slice, ``[S]``.

    Args:
        network: ``[S, 1, h, w]`` to the same.
        zero_filled: Magnitudes ``[S, h, w]``, not blank.
        reference: ``[S, h, w]``.
    """
    inputs, targets = [], []
    for own, wanted in zip(zero_filled, reference, strict=True):
        image, mean, std = normalize_instance(own)
        inputs.append(image)
        targets.append(normalize(wanted, mean, std, 1e-11))
    given = torch.stack(inputs).clamp(-CLAMP, CLAMP)[:, None]
    target = torch.stack(targets).clamp(-CLAMP, CLAMP)
    return (network(given)[:, 0] - target).abs().mean((-2, -1))
