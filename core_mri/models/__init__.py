"""Networks that a released weights folder can hold, and the list of their names."""

from __future__ import annotations

import fnmatch
import importlib
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Literal, overload

from core_mri.errors import WeightsError
from core_mri.models.registry import (
    MODELS,
    RECONSTRUCTION_MODELS,
    RECONSTRUCTORS,
    SAM_MODELS,
    EncoderConfig,
    ReconstructorConfig,
    SamConfig,
)

if TYPE_CHECKING:
    from core_mri.models.encoder import Encoder
    from core_mri.models.promptable import PromptableSegmenter
    from core_mri.models.reconstruction import Reconstructor

__all__ = [
    "MODELS",
    "RECONSTRUCTION_MODELS",
    "SAM_MODELS",
    "EncoderConfig",
    "ReconstructorConfig",
    "SamConfig",
    "create_model",
    "create_reconstructor",
    "create_sam",
    "list_models",
]


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` accepts, filtered by a shell pattern such as ``"vit_*16"``."""
    return sorted(fnmatch.filter([*MODELS, *SAM_MODELS, *RECONSTRUCTION_MODELS], pattern))


SamName = Literal["sam_vit_micro", "sam_vit_b", "sam_vit_l", "sam_vit_h"]
ReconstructorName = Literal[
    "recon_unet_micro",
    "recon_unet_32",
    "recon_unet_64",
    "recon_unet_128",
    "recon_unet_256",
    "varnet_micro",
    "varnet",
    "unrolled_micro",
    "unrolled",
    "unrolled_resnet",
]


@overload
def create_model(  # type: ignore[overload-overlap]
    name: SamName, **changes: object
) -> PromptableSegmenter: ...


@overload
def create_model(  # type: ignore[overload-overlap]
    name: ReconstructorName, **changes: object
) -> Reconstructor: ...


@overload
def create_model(name: str, **changes: object) -> Encoder: ...


def create_model(name: str, **changes: object) -> Encoder | PromptableSegmenter | Reconstructor:
    """A model with random weights (seed torch first for reproducible ones).

    Args:
        name: One of `list_models()`.
        **changes: Fields of its configuration (`core_mri.models.registry`) to change, such as
            ``image_size=64``.

    Returns:
        An `Encoder`; for ``sam_*`` a `PromptableSegmenter`; for ``recon_*``, ``varnet*`` and
        ``unrolled*`` a `Reconstructor`.

    Raises:
        WeightsError: WEIGHTS-03 for an unknown name or an unknown field.
    """
    config: EncoderConfig | SamConfig | ReconstructorConfig | None = (
        MODELS.get(name) or SAM_MODELS.get(name) or RECONSTRUCTION_MODELS.get(name)
    )
    if config is None:
        raise WeightsError(
            "WEIGHTS-03",
            f"no model {name!r}.",
            fix=f"Choose one of {', '.join(list_models())}.",
        )
    known = [field.name for field in fields(config)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise WeightsError(
            "WEIGHTS-03",
            f"no such model option: {', '.join(unknown)}.",
            fix=f"Allowed: {', '.join(known)}.",
        )
    changed = replace(config, **changes)  # type: ignore[arg-type]
    if isinstance(changed, SamConfig):
        return create_sam(changed)
    if isinstance(changed, ReconstructorConfig):
        return create_reconstructor(changed)
    from core_mri.models.encoder import Encoder

    return Encoder(changed)


def create_sam(config: SamConfig) -> PromptableSegmenter:
    """SAM with random weights."""
    from core_mri.models.promptable import PromptableSegmenter
    from core_mri.models.sam import SamEncoder

    return PromptableSegmenter(
        SamEncoder(config), image_size=config.image_size, channels=config.out_channels
    )


def create_reconstructor(config: ReconstructorConfig) -> Reconstructor:
    """A network for reconstruction with random weights."""
    module, name = next(
        (module, name) for module, (kind, name) in RECONSTRUCTORS.items() if type(config) is kind
    )
    found = getattr(importlib.import_module(f"core_mri.models.{module}"), name)
    model: Reconstructor = found(config)
    return model
