"""The optimizer of a run: schedules, parameter groups, and an update that bad gradients skip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from core_mri.checkpoints.state import distribute_like
from core_mri.models.encoder import Encoder
from core_mri.training.layer_decay import layer_multiplier
from core_mri.training.schedules import warmup_cosine
from core_mri.training.sharding import whole
from pretrain.config import OptimizerConfig, PretrainConfig
from pretrain.objectives import ENCODER, Array, Objective


def schedules(config: PretrainConfig) -> dict[str, Array]:
    """The optimizer's schedules of a run, each an array [steps]."""
    steps, optimizer = config.steps, config.optimizer
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
    return {
        "learning_rate": warmup_cosine(
            peak / max(warmup, 1), peak, optimizer.final_learning_rate, warmup, steps
        ),
        "weight_decay": warmup_cosine(0.0, *optimizer.weight_decay, 0, steps),
    }


class Optimization:
    """AdamW (0.9, 0.999) on the student, with layer-wise learning rates.

    Nothing here waits for the device. A gradient that is not finite leaves student and optimizer
    as they were: the fused kernel reads that from the device, and divides by the clipping factor
    on its way.

    Args:
        objective: Whose student is trained and whose teacher follows.
        config: Clipping, layer-wise decay.
    """

    def __init__(self, objective: Objective, config: OptimizerConfig) -> None:
        self.objective = objective
        self.clip_norm = config.clip_norm
        self.adamw = torch.optim.AdamW(
            parameter_groups(objective.student, config), lr=0.0, fused=True
        )

    def clear(self) -> None:
        """Forget the gradients of the step before."""
        self.adamw.zero_grad(set_to_none=True)

    def update(
        self,
        step: int,
        now: Mapping[str, float],
        frozen: Iterable[nn.Parameter] = (),
    ) -> Tensor:
        """Clip the gradients, step, move the teacher.

        Args:
            step: 0-based.
            now: Every schedule at this step.
            frozen: Parameters that stay as they are, besides those the objective freezes.

        Returns:
            Norm of the whole gradient before clipping, on the device; not finite when the step was
            skipped.
        """
        for parameter in (*self.objective.frozen(step), *frozen):
            parameter.grad = None
        for group in self.adamw.param_groups:
            group["lr"] = now["learning_rate"] * group["multiplier"]
            group["weight_decay"] = now["weight_decay"] if group["decays"] else 0.0
        gradients = [p.grad for p in self.objective.student.parameters() if p.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients))
        # What torch.amp.GradScaler hands to fused optimizers: a divisor, and 1 for "skip".
        self.adamw.grad_scale = self.clipped_by(norm)  # type: ignore[attr-defined]
        self.adamw.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.adamw.step()
        # On a device nobody looks: after a skipped step the teacher nears a student that is sound.
        if norm.device.type != "cpu" or bool(norm.isfinite()):
            self.objective.update(now)
        return norm

    def load(self, state: Mapping[str, Any]) -> None:
        """Take a state dict of AdamW with whole tensors."""
        parameters = [p for group in self.adamw.param_groups for p in group["params"]]
        moments = {
            number: {
                name: value if name == "step" else distribute_like(value, parameters[number])
                for name, value in of_one.items()
            }
            for number, of_one in state["state"].items()
        }
        self.adamw.load_state_dict({**state, "state": moments})

    def clipped_by(self, norm: Tensor) -> Tensor:
        """The divisor of all gradients when the whole one has this norm."""
        return (norm / self.clip_norm).clamp_min(1.0)


def parameter_groups(student: nn.ModuleDict, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups with ``params``, ``multiplier`` of the learning rate and whether it ``decays``.

    Matrices decay; biases, norms, LayerScale and single vectors (tokens) do not.
    """
    encoder = student[ENCODER]
    assert isinstance(encoder, Encoder)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        multiplier = 1.0
        if name.startswith(f"{ENCODER}."):
            multiplier = layer_multiplier(
                name,
                depth=encoder.depth,
                decay=config.layer_decay,
                patch_embed=config.patch_embed_lr,
            )
        is_matrix = sum(size > 1 for size in parameter.shape) > 1
        groups.setdefault((multiplier, is_matrix), []).append(parameter)
    return [
        {"params": parameters, "multiplier": multiplier, "decays": decays}
        for (multiplier, decays), parameters in groups.items()
    ]
