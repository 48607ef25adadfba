"""Worker processes for reading scans: bounded work in flight, and a crash costs one scan only."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_IN_FLIGHT = 2
"""Tasks handed out per worker: one in work, one waiting."""

_stop: Event | None = None


def stopping() -> bool:
    """Whether this worker should give up its task, because the ingest was interrupted."""
    return _stop is not None and _stop.is_set()


class WorkerPool:
    """Run a function on many tasks in spawned processes; a context manager.

    Args:
        jobs: Number of processes; 1 works in the calling process.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.Event()
        self._executor: ProcessPoolExecutor | None = None

    def each(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        parts: Callable[[Task], list[Task]] = lambda task: [task],
    ) -> Iterator[tuple[Task, Result | None]]:
        """Results in order of completion, each with its task.

        When a process dies (crashing decoder, no memory), the tasks in flight are cut into `parts`
        and tried again one at a time: the part that kills its process again has result None.

        Args:
            function: A module-level function.
            tasks: Drawn as workers become free.
            parts: Cuts a task into the smallest ones.
        """
        if self._jobs == 1:
            yield from ((task, function(task)) for task in tasks)
            return
        waiting = iter(tasks)
        pending: dict[Future[Result], Task] = {}
        lost: list[Task] = []
        exhausted = False
        while pending or lost or not exhausted:
            while not exhausted and not lost and len(pending) < _IN_FLIGHT * self._jobs:
                try:
                    task = next(waiting)
                except StopIteration:
                    exhausted = True
                    break
                try:
                    pending[self._running().submit(function, task)] = task
                except BrokenProcessPool:
                    lost.append(task)
            # After a crash every pending future ends at once, so the wait below drains them all.
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                task = pending.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    lost.append(task)
                else:
                    yield task, result
            if lost and not pending:
                self._discard()
                for part in (part for task in lost for part in parts(task)):
                    yield part, self._alone(function, part)
                lost = []

    def _alone(self, function: Callable[[Task], Result], task: Task) -> Result | None:
        try:
            return self._running().submit(function, task).result()
        except BrokenProcessPool:
            self._discard()
            return None

    def _running(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self._jobs,
                mp_context=self._context,
                initializer=_start_worker,
                initargs=(self._stop,),
            )
        return self._executor

    def _discard(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._discard()


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; we are told
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent was killed; the pool alone would leave it waiting."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
