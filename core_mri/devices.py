"""Which device computes, at which precision and why; which rank this process is; facts for logs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from core_mri.errors import ConfigError
from core_mri.version import __version__

if TYPE_CHECKING:
    import torch

REPORTED_PACKAGES = (
    "torch", "torchvision", "timm", "monai", "ray", "numpy", "h5py", "hdf5plugin", "pydicom",
    "nibabel", "duckdb", "pyarrow", "safetensors",
)  # fmt: skip


class Choice(NamedTuple):
    """A device and a precision with the reason, for the start screen."""

    device: torch.device
    precision: str
    """``"float32"`` or ``"bfloat16"`` (autocast)."""
    reason: str


def select_device(name: str = "auto") -> torch.device:
    """The device `name` means: ``auto`` takes CUDA, then MPS, then CPU.

    Raises:
        ConfigError: CONFIG-05 when the named device does not exist here.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(
            "CONFIG-05",
            f"device {name!r} cannot be used here: {first_line}.",
            fix="Use auto or cpu.",
        ) from None
    return device


def select_precision(device: torch.device, name: str = "auto") -> Choice:
    """Device and precision together, with the reason.

    Args:
        device: Where the model runs.
        name: ``auto``, ``float32`` or ``bfloat16``.

    Raises:
        ConfigError: CONFIG-01 for another name.
    """
    import torch

    if name not in ("auto", "float32", "bfloat16"):
        raise ConfigError("CONFIG-01", f"precision is auto, float32 or bfloat16, got {name!r}.")
    if name != "auto":
        return Choice(device, name, "as configured")
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return Choice(device, "bfloat16", "CUDA device with bfloat16 arithmetic")
    if device.type == "cuda":
        return Choice(device, "float32", "CUDA device without bfloat16 arithmetic")
    return Choice(device, "float32", f"no CUDA device; {device.type} computes in float32")


def rank() -> int:
    """Rank of this process among the workers of a run, 0 when there is one."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of worker processes of this run."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and logs for all workers."""
    return rank() == 0


def environment() -> dict[str, object]:
    """Facts that a result depends on: versions, machine, commit; read from package metadata."""
    versions = {}
    for name in REPORTED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "core_mri": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": available_cores(),
        "memory_gib": _memory_gib(),
        "packages": versions,
    }


def available_cores() -> int:
    """Processor cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _git_commit() -> str | None:
    """Commit of the checkout this package is run from, None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    found = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or None
