"""The hash of an encoder or of SAM: what results depend on besides images and prompts."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from core_mri.models.promptable import PromptableSegmenter

if TYPE_CHECKING:
    from core_mri.models.encoder import Encoder
    from core_mri.models.sam import SamEncoder


def weights_fingerprint(model: Encoder | SamEncoder | PromptableSegmenter) -> str:
    """Hash of every tensor, so that replaced weights are never taken for the old ones."""
    sizes = model.arguments if isinstance(model, PromptableSegmenter) else model.config
    digest = hashlib.sha256(repr(sizes).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
