"""Which weights of an encoder move when it is adapted.

* ``frozen``: none; its features of a slice are computed once.
* ``head``: none either, but slices are augmented afresh at every step, so features are recomputed.
* ``full``: all of them, at a learning rate of their own.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import asdict

import torch
from torch import nn

from core_mri.errors import WeightsError
from core_mri.models import MODELS
from core_mri.models.classifier import Classifier
from core_mri.models.encoder import Encoder
from core_mri.models.sam import SamEncoder
from core_mri.models.segmenter import Segmenter
from downstream.config import Adaptation


def adapt(encoder: Encoder, adaptation: Adaptation) -> Encoder:
    """A copy of `encoder` whose moving parameters, and only those, require gradients."""
    adapted = copy.deepcopy(encoder)
    adapted.requires_grad_(adaptation == "full")
    return adapted.train(adaptation == "full")


def encoder_of(model: nn.Module) -> Encoder:
    """The encoder of a loaded model; a segmenter or classifier gives the one inside it.

    Raises:
        WeightsError: WEIGHTS-02 when there is no plain ViT, as in SAM's networks.
    """
    encoder = model.encoder if isinstance(model, Segmenter | Classifier) else model
    if not isinstance(encoder, Encoder):
        raise WeightsError(
            "WEIGHTS-02",
            f"a plain ViT is needed here, these weights hold a {type(model).__name__}.",
        )
    return encoder


def random_twin(encoder: Encoder, seed: int) -> Encoder:
    """An encoder of the same architecture with random weights; torch's random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = Encoder(encoder.config)
    return twin.to(encoder.mask_token.device).eval()


def architecture(encoder: Encoder) -> str:
    """Name of the architecture for tables: the one of `core_mri.list_models`, or its sizes."""
    sizes = ("embed_dim", "depth", "num_heads", "patch_size")
    own = asdict(encoder.config)
    for name, config in MODELS.items():
        if all(asdict(config)[size] == own[size] for size in sizes):
            return name
    return f"vit_{own['embed_dim']}x{own['depth']}_patch{own['patch_size']}"


def weights_fingerprint(encoder: Encoder | SamEncoder) -> str:
    """Hash of every tensor, so that replaced weights are never taken for the old ones."""
    digest = hashlib.sha256(repr(encoder.config).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
