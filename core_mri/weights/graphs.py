"""A model as one file that runs without this package: TorchScript or ONNX.

The graph is made for one image side, with any number of images. An encoder gives ``cls`` [B, D] and
``patches`` [B, h, w, D], a segmenter ``logits`` [B, C, H, W], a promptable model the ``embedding``
[B, C, h, w] that a mask decoder reads; ``images`` are [B, 1, H, W] in [0, 1], as for the model; for
a segmenter that looks at neighbours or several sequences [B, planes, H, W].
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from core_mri.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from core_mri.models.encoder import Encoder

TOLERANCE = 1e-3
"""Largest difference of the written file to the model, as a part of the largest value."""


def write_torchscript(model: nn.Module, path: Path, image_size: int) -> float:
    """Trace the model and save it for ``torch.jit.load``.

    Args:
        model: An encoder, a segmenter or a promptable model, on the CPU.
        path: Written as it is: the caller renames it.
        image_size: Side of the images, pixels.

    Returns:
        Largest difference of the file's answers to the model's, as a part of the largest value.

    Raises:
        WeightsError: WEIGHTS-02 when the file answers differently.
    """
    graph = _graph(model, image_size)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing fixes sizes, as intended; torch.jit is deprecated
        traced = torch.jit.trace(graph, _images(2, image_size, graph.planes))
        torch.jit.save(traced, str(path))
        loaded = torch.jit.load(str(path))
    return _compare(graph, lambda images: loaded(images), image_size, path)


def write_onnx(model: nn.Module, path: Path, image_size: int) -> float:
    """Write an ONNX graph and run it with onnxruntime beside the model.

    Arguments, result and errors as :func:`write_torchscript`.

    Raises:
        ConfigError: CONFIG-06 when a package of the extra ``onnx`` is missing.
    """
    missing = [p for p in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(p)]
    if missing:
        raise ConfigError(
            "CONFIG-06",
            f"ONNX export needs {', '.join(missing)}.",
            fix='Install it with pip install "core-mri[onnx]".',
        )
    import onnxruntime

    graph = _graph(model, image_size)
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                (_images(2, image_size, graph.planes),),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=list(graph.outputs),
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            )
    finally:
        exporter.setLevel(level)
    assert program is not None
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))

    return _compare(graph, run, image_size, path)


class _Graph(nn.Module):
    """What is exported: plain tensors in, plain tensors out."""

    def __init__(self, model: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs
        self.planes: int = getattr(model, "planes", 1)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of `outputs`."""
        if self.outputs == ("embedding",):
            return (self.model.embed_image(images),)  # type: ignore[operator]
        answer = self.model(images)
        return (answer,) if isinstance(answer, Tensor) else tuple(answer)


def _graph(model: nn.Module, image_size: int) -> _Graph:
    from core_mri.models.encoder import Encoder
    from core_mri.models.promptable import PromptableSegmenter
    from core_mri.models.segmenter import Segmenter

    model = copy.deepcopy(model).cpu().float().eval()
    for module in model.modules():
        if isinstance(module, Encoder):
            _fix_positions(module, image_size)
    outputs = (
        ("logits",)
        if isinstance(model, Segmenter)
        else ("embedding",)
        if isinstance(model, PromptableSegmenter)
        else ("cls", "patches")
    )
    return _Graph(model, outputs).eval().requires_grad_(False)


def _fix_positions(encoder: Encoder, image_size: int) -> None:
    """Store the position table at the exported size, so that the graph holds no resampling."""
    from timm.layers import resample_abs_pos_embed

    if image_size % encoder.patch_size:
        raise ConfigError(
            "CONFIG-05",
            f"image size {image_size} is no multiple of the patch size {encoder.patch_size}.",
        )
    table, grid = encoder.vit.pos_embed, image_size // encoder.patch_size
    encoder.vit.pos_embed = nn.Parameter(
        resample_abs_pos_embed(
            table.data, [grid, grid], num_prefix_tokens=encoder.vit.num_prefix_tokens
        )
    )
    encoder.vit.patch_embed.set_input_size(img_size=(image_size, image_size))


def _images(count: int, image_size: int, planes: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, planes, image_size, image_size, generator=generator)


def _compare(graph: _Graph, run: object, image_size: int, path: Path) -> float:
    """On another number of images than the graph was made with."""
    assert callable(run)
    images = _images(3, image_size, graph.planes)
    with torch.no_grad():
        expected = graph(images)
    found = run(images)
    worst = max(
        float((ours - theirs).abs().max() / ours.abs().max())
        for ours, theirs in zip(expected, found, strict=True)
    )
    if not worst <= TOLERANCE:
        raise WeightsError(
            "WEIGHTS-02",
            f"{path}: the exported graph differs from the model by {worst:.2g} of its largest "
            f"value, at most {TOLERANCE} is allowed.",
            fix="Export another format, and report this with your versions (core-mri info).",
        )
    return worst
