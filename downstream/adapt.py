"""Which weights of an encoder move when it is adapted.

* ``frozen``: none; its features of a slice are computed once.
* ``head``: none either, but slices are augmented afresh at every step, so features are recomputed.
* ``adapters``: bottleneck adapters at MRI-CORE's places (`core_mri.models.adapters`).
* ``lora``: low-rank changes of queries and values (`downstream.lora`), merged at the end.
* ``full``: all of them, deeper layers slower (layer-wise decay).

An adapted encoder starts as the encoder it was, whatever moves.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TypeVar, cast

import torch
from torch import nn

from core_mri.errors import WeightsError
from core_mri.models import MODELS, create_sam
from core_mri.models.adapters import add_adapters, mri_core_places
from core_mri.models.classifier import Classifier
from core_mri.models.encoder import Encoder
from core_mri.models.neck import NeckedEncoder
from core_mri.models.promptable import PromptableSegmenter
from core_mri.models.registry import SAM_MODELS, EncoderConfig, SamConfig
from core_mri.models.sam import SamEncoder
from core_mri.models.segmenter import Segmenter
from core_mri.training.layer_decay import layer_multiplier
from downstream.config import Adaptation
from downstream.lora import add_lora
from downstream.recipe import Recipe

Start = Encoder | PromptableSegmenter
"""What is adapted: an encoder, or SAM with its decoder."""
StartT = TypeVar("StartT", bound=Start)
NEW_WEIGHTS = (".adapter.", ".parametrizations.weight.0.")
"""In the names of the tensors that adapters and LoRA add."""


def adapt(
    encoder: Encoder, adaptation: Adaptation, recipe: Recipe | None = None, seed: int = 0
) -> Encoder:
    """A copy of `encoder` whose moving parameters, and only those, require gradients.

    Args:
        encoder: Not changed.
        adaptation: What moves.
        recipe: Sizes of adapters and LoRA.
        seed: Of the random half of adapters and LoRA; torch's random state is kept.
    """
    recipe = recipe or Recipe()
    adapted = copy.deepcopy(encoder).requires_grad_(adaptation == "full")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if adaptation == "adapters":
            add_adapters(adapted, mri_core_places(adapted, recipe.adapter_ratio))
        elif adaptation == "lora":
            add_lora(adapted, recipe.lora_rank, recipe.lora_alpha)
    if adaptation in ("adapters", "lora"):
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad_(any(part in name for part in NEW_WEIGHTS))
    return adapted.train(moves(adaptation))


def moves(adaptation: Adaptation) -> bool:
    """Whether gradients run through the encoder."""
    return adaptation in ("adapters", "lora", "full")


def learning_rates(
    encoder: Encoder, adaptation: Adaptation, recipe: Recipe
) -> list[tuple[float, list[nn.Parameter]]]:
    """Peak learning rates of the moving parameters, one group a rate.

    With ``full`` deeper layers move faster: `core_mri.training.layer_decay`.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = recipe.adapter_learning_rate
        if adaptation == "full":
            factor = layer_multiplier(name, depth=encoder.depth, decay=recipe.layer_decay)
            rate = recipe.encoder_learning_rate * factor
        groups.setdefault(rate, []).append(parameter)
    return list(groups.items())


def encoder_of(model: nn.Module) -> Encoder:
    """The encoder of a loaded model; a segmenter, promptable model or classifier holds one.

    Raises:
        WeightsError: WEIGHTS-02 when there is no plain ViT, as in SAM's networks.
    """
    if isinstance(model, PromptableSegmenter):
        model = model.image_encoder
    held = isinstance(model, Segmenter | Classifier | NeckedEncoder)
    encoder = model.encoder if held else model
    if not isinstance(encoder, Encoder):
        raise WeightsError(
            "WEIGHTS-02",
            f"a plain ViT is needed here, these weights hold a {type(model).__name__}.",
        )
    return encoder


def start_of(model: nn.Module, *, prompts: bool) -> Start:
    """What of a loaded model is adapted: its encoder, or SAM whole where prompts are all there is.

    Raises:
        WeightsError: WEIGHTS-02 as `encoder_of`.
    """
    if prompts and isinstance(model, PromptableSegmenter):
        return model if isinstance(model.image_encoder, SamEncoder) else encoder_of(model)
    return encoder_of(model)


def sizes_of(start: Start) -> EncoderConfig | SamConfig:
    """The architecture of a model or encoder."""
    encoder = start.image_encoder if isinstance(start, PromptableSegmenter) else start
    sizes: EncoderConfig | SamConfig = encoder.config  # type: ignore[assignment]
    return sizes


def random_twin(start: StartT, seed: int) -> StartT:
    """The same architecture with random weights; torch's random state is kept."""
    sizes = sizes_of(start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin: nn.Module = create_sam(sizes) if isinstance(sizes, SamConfig) else Encoder(sizes)
    return cast("StartT", twin.to(next(start.parameters()).device).eval())


def architecture(start: Start) -> str:
    """Name of the architecture for tables: the one of `core_mri.list_models`, or its sizes."""
    sizes = ("embed_dim", "depth", "num_heads", "patch_size")
    found = sizes_of(start)
    known = SAM_MODELS if isinstance(found, SamConfig) else MODELS
    own = asdict(found)
    for name, config in known.items():
        if all(asdict(config)[size] == own[size] for size in sizes):
            return name
    kind = "sam_vit" if isinstance(found, SamConfig) else "vit"
    return f"{kind}_{own['embed_dim']}x{own['depth']}_patch{own['patch_size']}"
