"""Worker processes for reading scans: bounded work in flight, and a crash costs one scan only."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
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

    @property
    def num_workers(self) -> int:
        """Its processes."""
        return self._jobs

    def each(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        parts: Callable[[Task], list[Task]] = lambda task: [task],
    ) -> Iterator[tuple[Task, Result | None]]:
        """Results in the order of the tasks, each with its task.

        The order makes what a killed caller has used a beginning of the whole, whatever the number
        of processes. When a process dies (crashing decoder, no memory), the tasks in flight are cut
        into `parts` and tried again one at a time: the part that kills its process again has result
        None.

        Args:
            function: A module-level function.
            tasks: Drawn as workers become free.
            parts: Cuts a task into the smallest ones.
        """
        if self._jobs == 1:
            yield from ((task, function(task)) for task in tasks)
            return
        waiting = iter(tasks)
        pending: deque[tuple[Task, Future[Result]]] = deque()
        while True:
            for task in itertools.islice(waiting, _IN_FLIGHT * self._jobs - len(pending)):
                pending.append((task, self._submit(function, task)))
            if not pending:
                return
            task, future = pending.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                yield from self._one_by_one(function, task, parts)
                self._resubmit(function, pending)
            else:
                yield task, result

    def _one_by_one(
        self,
        function: Callable[[Task], Result],
        task: Task,
        parts: Callable[[Task], list[Task]],
    ) -> Iterator[tuple[Task, Result | None]]:
        self._discard()
        for part in parts(task):
            try:
                yield part, self._submit(function, part).result()
            except BrokenProcessPool:
                self._discard()
                yield part, None

    def _resubmit(
        self, function: Callable[[Task], Result], pending: deque[tuple[Task, Future[Result]]]
    ) -> None:
        """Hand out again what a broken pool lost; what it finished before is kept."""
        for place, (task, future) in enumerate(pending):
            if isinstance(future.exception(), BrokenProcessPool):
                pending[place] = (task, self._submit(function, task))

    def _submit(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        """A future; a broken pool refuses new tasks, so that one is broken from the start."""
        try:
            return self._running().submit(function, task)
        except BrokenProcessPool as error:
            future: Future[Result] = Future()
            future.set_exception(error)
            return future

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
