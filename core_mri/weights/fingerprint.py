"""The hash of an encoder: what its features depend on besides the images."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core_mri.models.encoder import Encoder
    from core_mri.models.sam import SamEncoder


def weights_fingerprint(encoder: Encoder | SamEncoder) -> str:
    """Hash of every tensor, so that replaced weights are never taken for the old ones."""
    digest = hashlib.sha256(repr(encoder.config).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
