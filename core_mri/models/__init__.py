"""Networks that a released weights folder can hold, and the list of their names."""

from __future__ import annotations

import fnmatch
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from core_mri.errors import WeightsError
from core_mri.models.registry import MODELS, EncoderConfig

if TYPE_CHECKING:
    from core_mri.models.encoder import Encoder

__all__ = ["MODELS", "EncoderConfig", "create_model", "list_models"]


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` accepts, filtered by a shell pattern such as ``"vit_*16"``."""
    return sorted(fnmatch.filter(MODELS, pattern))


def create_model(name: str, **changes: object) -> Encoder:
    """An encoder with random weights (seed torch first for reproducible ones).

    Args:
        name: One of `list_models()`.
        **changes: Fields of `EncoderConfig` to change, such as ``image_size=64``.

    Raises:
        WeightsError: WEIGHTS-03 for an unknown name or an unknown field.
    """
    from core_mri.models.encoder import Encoder

    if name not in MODELS:
        raise WeightsError(
            "WEIGHTS-03",
            f"no model {name!r}.",
            fix=f"Choose one of {', '.join(list_models())}.",
        )
    known = [field.name for field in fields(EncoderConfig)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise WeightsError(
            "WEIGHTS-03",
            f"no such model option: {', '.join(unknown)}.",
            fix=f"Allowed: {', '.join(known)}.",
        )
    return Encoder(replace(MODELS[name], **changes))  # type: ignore[arg-type]
