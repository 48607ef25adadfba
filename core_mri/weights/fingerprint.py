"""The hash of an encoder or of SAM: what results depend on besides images and prompts."""

from __future__ import annotations

import hashlib

from torch import nn

from core_mri.models.neck import NeckedEncoder
from core_mri.models.promptable import PromptableSegmenter


def weights_fingerprint(model: nn.Module) -> str:
    """Hash of every tensor and size, so that replaced weights are never taken for the old ones.

    Args:
        model: An `Encoder`, `SamEncoder` or `PromptableSegmenter`.
    """
    digest = hashlib.sha256(_sizes(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _sizes(model: nn.Module) -> str:
    """What tensors alone do not tell: heads, windows, paddings, depths that a neck reads."""
    if isinstance(model, PromptableSegmenter):
        return f"{model.arguments} {_sizes(model.image_encoder)}"
    if isinstance(model, NeckedEncoder):
        return f"{model.depths} {_sizes(model.encoder)}"
    return repr(model.config)
