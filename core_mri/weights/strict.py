"""Strict loading: every tensor of the model, no other, each of its shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = 10


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy `tensors` into `model`.

    Raises:
        WeightsError: WEIGHTS-02 naming the tensors that are missing, unexpected or of another
            shape, and the file.
    """
    own = model.state_dict()
    problems = [f"missing {name}" for name in own if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in own]
    problems += [
        f"{name} is {list(tensor.shape)}, expected {list(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise WeightsError("WEIGHTS-02", f"{path}: {'; '.join(problems[:SHOWN])}{more}.")
    model.load_state_dict(dict(tensors))
