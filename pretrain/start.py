"""What the encoder starts from: random weights, or those of anybody else."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch

from core_mri.errors import WeightsError
from core_mri.models import create_model
from core_mri.models.encoder import Encoder
from core_mri.models.registry import MODELS
from pretrain.config import PretrainConfig
from pretrain.stages import positions_for

log = logging.getLogger(__name__)

_OWN = ("image_size", "drop_path", "pool")
"""What the run decides, not the weights it starts from."""
_OTHER_PATCHES = ("dinov2:", "hf-dinov2:", "dinov3:", "mae:")
"""Checkpoints whose patch embedding is resampled: published DINOv2 has 14 px, `MODELS` have 16."""
PLAIN = (
    "SAM's windowed encoder as a plain ViT: attention over all patches, relative positions "
    "dropped; a class token that is 0 and a new last norm"
)
_NAMED = 6
_LEVEL = 0.01
"""Part of the loss by which it must still fall from window to window for the heads to go on."""


def build_encoder(
    config: PretrainConfig, *, drop_path: float = 0.0, pool: Literal["token", "mean"] = "token"
) -> Encoder:
    """The encoder of a run as it begins, for the size of the global views.

    Args:
        config: ``model``, ``layer_scale``, ``num_registers`` and ``start`` say what it is.
        drop_path: Stochastic depth.
        pool: What the encoder says of a whole image.

    Raises:
        WeightsError: WEIGHTS-02 naming the tensors in which ``start`` and the configured encoder
            differ; what `core_mri.load_model` raises.
    """
    changes: dict[str, Any] = {
        "image_size": config.views.global_size,
        "drop_path": drop_path,
        "pool": pool,
        "layer_scale": config.layer_scale,
        "num_registers": config.num_registers,
    }
    if not config.start:
        return create_model(config.model, **changes)
    source = _load(config)
    expected = create_model(config.model, **changes | {"positions": source.config.positions})
    _check_same(config, expected, source)
    own = {name: getattr(expected.config, name) for name in _OWN}
    encoder = create_model(config.model, **(dataclasses.asdict(source.config) | own))
    tensors = source.state_dict()
    if source.config.positions != "rotary":
        tensors["vit.pos_embed"] = positions_for(source, config.views.global_size)
    encoder.load_state_dict(tensors)
    return encoder


class HeadWarmup:
    """Keeps a trained encoder as it is until random heads have learned to read it.

    Their gradients would destroy it: dinov2 issue 204 fell from 80 % to 10 % within 30,000 images.
    It ends after ``start_freeze_steps``, or when the mean loss of a tenth of these steps is less
    than 1 % below that of the tenth before.

    Args:
        steps: ``start_freeze_steps``.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.window = max(10, steps // 10)
        self.losses: list[float] = []
        self.end = steps
        """First step that trains the encoder."""

    def frozen(self, step: int) -> bool:
        """Whether step `step` (0-based) leaves the encoder alone."""
        return step < self.end

    def update(self, step: int, loss: float) -> None:
        """Take the loss of a step."""
        if step >= self.steps or self.end < self.steps:
            return
        self.losses = [*self.losses, loss][-2 * self.window :]
        if len(self.losses) < 2 * self.window:
            return
        before, now = (
            sum(part) for part in (self.losses[: self.window], self.losses[self.window :])
        )
        if now > before - _LEVEL * abs(before):
            # Not at once: where numbers come late the next step has already begun.
            self.end = step + 2
            log.info("the loss of the heads has leveled off: the encoder learns from step %d on",
                     self.end)  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"losses": list(self.losses), "end": self.end}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.losses, self.end = list(state["losses"]), int(state["end"])


def start_of(config: PretrainConfig) -> str:
    """What a model card says of the weights a run began with."""
    plain = f" ({PLAIN})" if config.start.startswith(("sam:", "medsam:")) else ""
    return f"{config.start}{plain}" if config.start else "random weights"


def suggested_rate(batch_size: int) -> float:
    """Highest learning rate that is advised for continued training.

    ``2e-4 * sqrt(B / 1024)``, that of DINOv2's long schedules.
    """
    return float(2e-4 * (batch_size / 1024) ** 0.5)


def _load(config: PretrainConfig) -> Encoder:
    from core_mri.models.sam import SamEncoder
    from core_mri.weights import load_model
    from core_mri.weights.sam_layouts import as_plain_vit

    model: torch.nn.Module = load_model(config.start, device="cpu")
    encoder = getattr(model, "encoder", getattr(model, "image_encoder", model))
    if isinstance(encoder, SamEncoder):
        log.warning("start %s: %s", config.start, PLAIN)
        return as_plain_vit(encoder)
    if not isinstance(encoder, Encoder):
        raise WeightsError(
            "WEIGHTS-02",
            f"{config.start}: holds a {type(model).__name__}, which has no ViT encoder.",
            fix="Start from a ViT: DINOv2, DINOv3, MAE, SAM, MRI-CORE, or a folder of ours.",
        )
    patch = MODELS[config.model].patch_size
    if encoder.patch_size != patch and config.start.startswith(_OTHER_PATCHES):
        log.warning("start %s: patches resampled from %d to %d px", config.start,
                    encoder.patch_size, patch)  # fmt: skip
        resampled = load_model(config.start, device="cpu", patch_size=patch)
        assert isinstance(resampled, Encoder)
        return resampled
    return encoder


def _check_same(config: PretrainConfig, expected: Encoder, source: Encoder) -> None:
    ours, theirs = expected.state_dict(), source.state_dict()
    table = "vit.pos_embed"
    problems = [f"{name} is only in the run's encoder" for name in ours if name not in theirs]
    problems += [f"{name} is only in the weights" for name in theirs if name not in ours]
    problems += [
        f"{name} is {list(theirs[name].shape)} there and {list(tensor.shape)} here"
        for name, tensor in ours.items()
        if name in theirs and name != table and theirs[name].shape != tensor.shape
    ]
    keys = ("embed_dim", "depth", "num_heads", "patch_size", "num_registers", "layer_scale")
    differ = {
        key: (getattr(source.config, key), getattr(expected.config, key))
        for key in keys
        if (bool(getattr(source.config, key)) != bool(getattr(expected.config, key)))
        or (key != "layer_scale" and getattr(source.config, key) != getattr(expected.config, key))
    }
    if not (problems or differ):
        return
    shown = "; ".join(problems[:_NAMED])
    more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    told = ", ".join(f"{key} {theirs} there, {ours} here" for key, (theirs, ours) in differ.items())
    settable = [
        f"{key} to {theirs}" for key, (theirs, _) in differ.items()
        if key in ("num_registers", "layer_scale")
    ]  # fmt: skip
    raise WeightsError(
        "WEIGHTS-02",
        f"start {config.start} does not fit {config.model}: {told}. {shown}{more}.",
        fix=(f"Set {' and '.join(settable)}" if settable and len(settable) == len(differ) else
             "Start from a ViT with a class token, a plain MLP and biases" if not differ else
             "Choose the `model` that has these sizes") + ".",
    )  # fmt: skip
