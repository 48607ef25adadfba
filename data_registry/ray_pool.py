"""The work of a `WorkerPool` on the machines of a Ray cluster: what dies is done again.

Workers write shards to the registry's own folder, so that all machines must see it, the sources,
and an installed core-mri under the same paths. Only the caller commits. A task whose worker or node
died is handed out again; its first shard, complete or not, is in no commit and swept at the end.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from core_mri.launch import ray_cluster

if TYPE_CHECKING:
    from ray import ObjectRef

Task = TypeVar("Task")
Result = TypeVar("Result")

_IN_FLIGHT = 2
"""Tasks handed out per core of the cluster: one in work, one waiting."""
_TRIES = 2
"""How often a task, and then each part of it, may lose its worker before it is given up."""


class RayPool:
    """Run a function on many tasks in a Ray cluster; a context manager.

    Args:
        address: Of a running cluster, ``host:port`` or ``ray://host:port``; ``local`` starts one on
            this machine for as long as the pool is open.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._open = contextlib.ExitStack()

    @property
    def num_workers(self) -> int:
        """Cores that the cluster has now."""
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def each(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        parts: Callable[[Task], list[Task]] = lambda task: [task],
    ) -> Iterator[tuple[Task, Result | None]]:
        """Results in the order of the tasks, each with its task; as `WorkerPool.each`.

        Args:
            function: A module-level function.
            tasks: Drawn as cores become free; nodes that join later are used.
            parts: Cuts a task that lost its worker twice into the smallest ones; a part that loses
                its worker twice too has result None.

        Raises:
            Exception: What `function` raises.
        """
        import ray

        remote = ray.remote(num_cpus=1, max_retries=0)(function)
        waiting = iter(tasks)
        pending: deque[tuple[Task, ObjectRef]] = deque()
        while True:
            free = _IN_FLIGHT * self.num_workers - len(pending)
            for task in itertools.islice(waiting, max(0, free)):
                pending.append((task, remote.remote(task)))
            if not pending:
                return
            task, first = pending.popleft()
            found, result = _result(remote, task, first)
            if found:
                yield task, result
                continue
            for part in parts(task):
                yield part, _result(remote, part, remote.remote(part))[1]

    def __enter__(self) -> RayPool:
        address = None if self._address == "local" else self._address
        self._open.enter_context(ray_cluster(address, 1))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()


def _result(remote: Any, task: Task, first: ObjectRef) -> tuple[bool, Any]:
    """Whether a task came to an end, and its result; handed out again while its workers die."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    running = first
    for left in reversed(range(_TRIES)):
        try:
            return True, ray.get(running)
        except RayTaskError as error:
            raise error.cause from None
        except RayError:
            if left:
                running = remote.remote(task)
    return False, None
