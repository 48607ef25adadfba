"""Workers of gloo, each a process forked from one that has only imported.

A process that ran tests before must not be forked: threads are gone in the child, and what they
held (connections, pools, files of other tests) may crash it when it is collected there.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED = ["core_mri.weights", "downstream.serving.work", "monai.inferers", "pretrain.train"]
"""Of the training core, and what services of the tests fork for their jobs: they share a server."""


def clean_process(target: Callable[..., object], *arguments: Any) -> Any:
    """A process that is not started yet; it sees nothing that a fixture has replaced."""
    _CONTEXT.set_forkserver_preload(_IMPORTED)
    return _CONTEXT.Process(target=target, args=arguments)


def run_workers(
    body: Callable[..., object], folder: Path, *arguments: Any, num_workers: int = 2
) -> list[Any]:
    """What `body` returns in each of so many workers.

    Args:
        body: A function of a module, called with the arguments in a group of gloo.
        folder: Where the workers find each other; made if missing.
        arguments: Pickled, and so is what `body` returns: no tensors, they would stay shared.
        num_workers: Processes.

    Raises:
        torch.multiprocessing.ProcessRaisedException: A worker raised; its traceback is the message.
    """
    import torch.multiprocessing as mp

    _CONTEXT.set_forkserver_preload(_IMPORTED)
    folder.mkdir(exist_ok=True)
    store = folder / f"store-{len(list(folder.iterdir()))}"
    queue = _CONTEXT.SimpleQueue()
    processes = mp.start_processes(
        _worker, (num_workers, store, queue, body, arguments), nprocs=num_workers, join=False,
        start_method="forkserver",
    )  # fmt: skip
    found: dict[int, Any] = {}
    while len(found) < num_workers:
        if queue.empty():
            processes.join(0.05)  # raises what a worker raised
        else:
            rank, value = queue.get()
            found[rank] = value
    while not processes.join():
        pass
    return [found[rank] for rank in range(num_workers)]


def _worker(
    rank: int,
    num_workers: int,
    store: Path,
    queue: Any,
    body: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=num_workers
    )
    queue.put((rank, body(*arguments)))
    dist.barrier()  # gloo ends a process whose peer has left
    dist.destroy_process_group()
