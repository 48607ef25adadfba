"""Out of memory: the error that says how many slices at once to try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core_mri.errors import RunError
from pretrain.config import PretrainConfig

_TEXTS = ("DefaultCPUAllocator", "std::bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says in plain RuntimeErrors when there is no memory left."""


@contextmanager
def advises_batch(config: PretrainConfig, num_workers: int) -> Iterator[None]:
    """Steps inside that run out of memory end with the next `micro_batch` to try.

    Args:
        config: Of the run.
        num_workers: Workers that share the batch.

    Raises:
        RunError: RUN-04.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        held, smaller = smaller_part(config, num_workers)
        raise RunError(
            "RUN-04",
            f"out of memory with {held} slices at once on each of {num_workers} worker(s): "
            f"{str(error).partition(chr(10))[0].rstrip('.') or 'nothing left'}.",
            fix=f"Try --micro-batch {smaller}: the same batch and the same gradients, in parts."
            if smaller
            else "That is as few as objective.koleo_group allows: fewer views.num_local, "
            "fewer objective.num_prototypes or a smaller model need less.",
        ) from error


def smaller_part(config: PretrainConfig, num_workers: int) -> tuple[int, int]:
    """Slices that a worker holds at once, and the next smaller number of whole KoLeo groups.

    The second one is at most half of the first; 0 when there is none.
    """
    group = config.objective.koleo_group
    share = -(-config.batch_size // group // num_workers) * group
    held = min(share, config.micro_batch or share)
    return held, held // 2 // group * group


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in _TEXTS)
