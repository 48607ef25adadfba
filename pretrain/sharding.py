"""How workers share an objective: each has all of it, or a part (FSDP2).

By default every worker holds all weights and DistributedDataParallel averages the gradients. For
encoders from ViT-L on weights, gradients, moments of the optimizer and the teacher are divided
among the workers (ZeRO stage 3, arXiv 1910.02054). Units whose weights are gathered together:

- each block of a transformer, for the time of its forward and its backward pass;
- each head: the student's from its forward to its backward pass;
- the rest (tokens, patch embedding, last norm), for a whole step.

The packed step reads the weights of blocks and heads itself instead of calling them as modules, so
it says with `within` whose weights it is about to read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from core_mri.checkpoints.state import distribute_like
from core_mri.devices import is_main, world_size
from core_mri.errors import RunError
from core_mri.models.encoder import Encoder
from core_mri.training.sharding import whole
from pretrain.config import PretrainConfig
from pretrain.heads import ProjectionHead
from pretrain.objectives import Batch, Lesson, Objective

T = TypeVar("T")


class Shared:
    """An objective whose gradients are the mean of those of all workers.

    Args:
        objective: On its device. Sharding replaces its parameters, so the optimizer comes after.
        config: `sharding` and `reduce_dtype` say how.
        precision: ``bfloat16``: matrices of sharded blocks are gathered in it, as autocast would
            cast them there.

    Raises:
        RunError: RUN-10 where torch cannot do that.
    """

    def __init__(self, objective: Objective, config: PretrainConfig, precision: str) -> None:
        self.objective = objective
        self.sharded = config.sharded(world_size())
        self._network: nn.Module = objective
        reduce_dtype = getattr(torch, config.reduce_dtype)
        if self.sharded:
            _shard(objective, reduce_dtype, precision)
        elif world_size() > 1:
            self._network = nn.parallel.DistributedDataParallel(objective)
            if reduce_dtype == torch.bfloat16:
                from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
                    bf16_compress_hook,
                )

                self._network.register_comm_hook(None, bf16_compress_hook)

    def teach(self, batch: Batch, now: Mapping[str, float]) -> Lesson | None:
        """`Objective.teach`, before `__call__`."""
        return within(self.objective, partial(self.objective.teach, batch, now))

    def __call__(
        self, batch: Batch, now: Mapping[str, float], lesson: Lesson | None
    ) -> dict[str, Tensor]:
        """`Objective.forward`."""
        if self.sharded:  # which would move arguments to the device: masks stay
            return within(self.objective, partial(self.objective.forward, batch, now, lesson))
        out: dict[str, Tensor] = self._network(batch, now, lesson)
        return out

    def averaging(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are averaged with those of the last part of a step.

        Sharded ones with each part: a worker has no place for all of them.
        """
        if is_last or not isinstance(self._network, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self._network.no_sync()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take a state dict of whole tensors."""
        own = self.objective.state_dict()
        self.objective.load_state_dict(
            {name: distribute_like(value, own[name]) for name, value in state.items()}
        )


def within(module: nn.Module, function: Callable[..., T], *arguments: Tensor) -> T:
    """``function(*arguments)`` while the weights of a module are whole.

    Args:
        module: Sharded, or not, when nothing is to be done.
        function: Reads weights of the module itself.
        arguments: Tensors through which gradients flow; the function must not change them.
    """
    if not isinstance(module, FSDPModule):
        return function(*arguments)
    run: Any = module.run
    result: T = run(function, *arguments)
    return result


def gathered(encoder: Encoder) -> Encoder:
    """A whole copy of an encoder, on the main worker alone; all call it."""
    tensors = {}
    for name, tensor in encoder.state_dict().items():
        value = whole(tensor)
        if is_main():
            tensors[name] = value
    if not is_main():
        return encoder
    copy = Encoder(encoder.config).requires_grad_(False).eval()
    copy.load_state_dict(tensors)
    return copy.to(next(encoder.parameters()).device)


def whole_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with whole tensors on the processor; all workers call it."""
    return {
        key: whole(value).to("cpu", copy=True)
        if isinstance(value, Tensor)
        else whole_state(value)
        if isinstance(value, Mapping)
        else value
        for key, value in state.items()
    }


def _shard(objective: Objective, reduce_dtype: torch.dtype, precision: str) -> None:
    """Divide an objective among all workers, in place.

    Raises:
        RunError: RUN-10.
    """
    from torch.distributed.device_mesh import init_device_mesh

    device = next(objective.parameters()).device
    mesh = init_device_mesh(device.type, (world_size(),))
    plain = MixedPrecisionPolicy(reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    policy = plain
    if precision == "bfloat16":
        if "param_dtype_override_fn" not in {field.name for field in fields(plain)}:
            raise RunError(
                "RUN-10",
                f"torch {torch.__version__} gathers all weights of a block in one type; 2.15 can "
                "leave vectors in float32.",
                fix="Install torch 2.15 or newer, or set --sharding none.",
            )
        policy = replace(
            plain,
            param_dtype=torch.bfloat16,
            param_dtype_override_fn=lambda p: torch.float32 if p.ndim < 2 else None,
        )

    def unit(module: nn.Module, policy: MixedPrecisionPolicy, *, keeps: bool = False) -> None:
        learns = any(p.requires_grad for p in module.parameters())
        fully_shard(
            module, mesh=mesh, mp_policy=policy, reshard_after_forward=not (keeps and learns)
        )
        module.run = MethodType(_run, module)  # type: ignore[assignment]
        register_fsdp_forward_method(module, "run")
        if not learns and isinstance(module, FSDPModule):
            module.set_unshard_in_backward(False)

    for module in list(objective.modules()):
        if isinstance(module, ProjectionHead):
            unit(module, plain, keeps=True)
        for block in getattr(module, "blocks", ()):
            unit(block, policy)
    unit(objective, plain, keeps=True)


def _run(_module: nn.Module, function: Callable[..., T], *arguments: Tensor) -> T:
    return function(*arguments)
