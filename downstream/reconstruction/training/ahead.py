"""The next batch is made while the device works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """What belongs to a number, made one ahead by a thread of its own.

    Args:
        make: Depends on the number alone.
    """

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._number = -1
        self._future: Future[T] | None = None

    def take(self, number: int) -> T:
        """That of `number`, made already or made now; what `make` raised is raised here."""
        if self._number != number:
            self.start(number)
        assert self._future is not None
        return self._future.result()

    def start(self, number: int) -> None:
        """Begin with that of `number`, after all that was begun before."""
        self._number = number
        self._future = self._thread.submit(self._make, number)

    def wait(self) -> None:
        """Until the thread is idle, so that what it reads may be read by others."""
        if self._future is not None:
            self._future.exception()
