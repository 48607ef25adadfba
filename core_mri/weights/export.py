"""Weights to a file that another program reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from core_mri.errors import ConfigError, WeightsError
from core_mri.runs import file_sha256, writing

if TYPE_CHECKING:
    from torch import nn

Format = Literal["sam", "torchscript", "onnx"]


class Exported(NamedTuple):
    """What was written."""

    path: Path
    """The file."""
    sha256: str
    """Its hash."""
    image_size: int
    """Side of the images that it is for, pixels."""
    dropped: tuple[str, ...]
    """Tensors of the model that the format has no place for."""
    difference: float | None
    """Largest relative difference to the model where the file was run beside it; None for ``sam``,
    which renames tensors."""


def export(model: nn.Module, path: str | Path, *, format: Format, image_size: int = 0) -> Exported:  # noqa: A002
    """Write a model for another program; the file appears whole or not at all.

    Args:
        model: As `core_mri.load_model` gives it.
        path: The file; an existing one is replaced.
        format: ``sam``, a flat dictionary of tensors as Segment Anything's checkpoints are
            (``torch.load(path, weights_only=True)``, or safetensors when the name ends so);
            ``torchscript``; ``onnx``.
        image_size: Side of the images, pixels; 0 is the model's own, and 1024 for a plain ViT in
            the ``sam`` layout.

    Raises:
        ConfigError: CONFIG-05 for a size that does not fit, CONFIG-06 for a missing package.
        WeightsError: WEIGHTS-02 when the model has no such form, or the file answers differently.
        DataError: DATA-07 when the file cannot be written.
    """
    from core_mri.models.classifier import Classifier
    from core_mri.models.encoder import Encoder
    from core_mri.models.reconstruction import Reconstructor

    if isinstance(model, Classifier):
        raise WeightsError(
            "WEIGHTS-02",
            f"a classifier of a {model.level} has no {format} form: it pools over any number of "
            "slices.",
            fix="Export the encoder it was made from, or use core_mri.Predictor(model).classify.",
        )
    if isinstance(model, Reconstructor):
        raise WeightsError(
            "WEIGHTS-02",
            f"a {type(model).__name__} has no {format} form: it takes complex k-space of any size.",
            fix="Use core-mri reconstruct or core_mri.Predictor(model).reconstruct.",
        )
    path = Path(path)
    owner: Any = model if hasattr(model, "image_size") else model.config
    own = int(owner.image_size)
    side = image_size or (1024 if format == "sam" and isinstance(model, Encoder) else own)
    if format != "sam" and not isinstance(model, Encoder) and side != own:
        raise ConfigError(
            "CONFIG-05",
            f"this model works at {own} px, image_size {image_size} was asked for.",
            fix="Leave image_size out.",
        )
    dropped: tuple[str, ...] = ()
    difference = None
    aside = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if format == "sam":
                dropped = _write_sam(model, aside, side, safe=path.suffix == ".safetensors")
            elif format == "torchscript":
                from core_mri.weights.graphs import write_torchscript

                difference = write_torchscript(model, aside, side)
            else:
                from core_mri.weights.graphs import write_onnx

                difference = write_onnx(model, aside, side)
            os.replace(aside, path)  # noqa: PTH105
        finally:
            aside.unlink(missing_ok=True)
    return Exported(path, file_sha256(path), side, dropped, difference)


def _write_sam(model: nn.Module, path: Path, image_size: int, *, safe: bool) -> tuple[str, ...]:
    import torch
    from safetensors.torch import save_file

    from core_mri.weights.sam_export import sam_layout

    layout = sam_layout(model, image_size)
    tensors = {name: tensor.contiguous() for name, tensor in layout.tensors.items()}
    if safe:
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return layout.dropped
