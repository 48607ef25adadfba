"""Out of memory: the error that says which batch to try."""

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
    """Steps inside that run out of memory end with the next `batch_size` to try.

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
        smaller = smaller_batch(config, num_workers)
        raise RunError(
            "RUN-04",
            f"out of memory with batch_size {config.batch_size} on {num_workers} worker(s): "
            f"{str(error).partition(chr(10))[0].rstrip('.') or 'nothing left'}.",
            fix=f"Try batch_size {smaller}, with optimizer.learning_rate times "
            f"{(smaller / config.batch_size) ** 0.5:.2f} and another `out`."
            if smaller
            else "The batch is as small as objective.koleo_group allows: fewer views.num_local, "
            "fewer objective.num_prototypes or a smaller model need less.",
        ) from error


def smaller_batch(config: PretrainConfig, num_workers: int) -> int:
    """The largest batch of whole KoLeo groups for each worker up to half of the present one.

    0 when there is none.
    """
    unit = num_workers * config.objective.koleo_group
    return config.batch_size // 2 // unit * unit


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in _TEXTS)
