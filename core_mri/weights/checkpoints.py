"""Checkpoint files of others: read without running anything they contain."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from core_mri.errors import WeightsError
from core_mri.runs import file_sha256

if TYPE_CHECKING:
    from torch import Tensor


def read_checkpoint(path: Path, *, sha256: str = "") -> tuple[dict[str, Any], str]:
    """The content of a ``.safetensors`` or PyTorch file, and its SHA-256.

    A pickle may build tensors, plain containers and `argparse.Namespace` (MAE and DINO store their
    settings so), nothing else; nothing in it is run.

    Args:
        path: The file.
        sha256: What its SHA-256 must be; "" takes any.

    Raises:
        WeightsError: WEIGHTS-01 when there is no such file, WEIGHTS-04 when it is damaged or holds
            anything else, WEIGHTS-05 when the hash differs.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError("WEIGHTS-01", f"{path}: no such file.")
    found = file_sha256(path)
    if sha256 and found != sha256.lower():
        raise WeightsError(
            "WEIGHTS-05",
            f"{path}: SHA-256 is {found}, expected {sha256}.",
            fix="Download the file again from its source.",
        )
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path)), found
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "unreadable"
        if "weights_only" in reason:  # PyTorch's advice is to run the code
            reason = "not tensors alone"
        raise WeightsError(
            "WEIGHTS-04",
            f"{path}: damaged, or holds more than tensors; nothing in it was run ({reason}).",
            fix="Ask its author for a .safetensors file or a state_dict.",
        ) from None
    if not isinstance(content, Mapping):
        raise WeightsError(
            "WEIGHTS-04", f"{path}: holds a {type(content).__name__}, expected named tensors."
        )
    return dict(content), found


def tensors_of(
    content: Mapping[str, Any], containers: Sequence[str], path: Path
) -> dict[str, Tensor]:
    """The named tensors of a checkpoint: those of the first of `containers` it has, or its own.

    ``module.`` and ``_orig_mod.`` (DataParallel, torch.compile) are stripped.

    Raises:
        WeightsError: WEIGHTS-04 when there are no tensors.
    """
    import torch

    chosen = next(
        (content[name] for name in containers if isinstance(content.get(name), Mapping)), content
    )
    tensors = {
        str(name).removeprefix("module.").removeprefix("_orig_mod."): tensor
        for name, tensor in chosen.items()
        if isinstance(tensor, torch.Tensor)
    }
    if not tensors:
        raise WeightsError(
            "WEIGHTS-04", f"{path}: no tensors, only {', '.join(map(str, content)) or 'nothing'}."
        )
    return tensors
