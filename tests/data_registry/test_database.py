"""A database outlives a fork: children neither destroy it nor lose it."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator

import pytest

from data_registry.database import connect

QUERY = "SELECT r % 1000 AS k, sum(r) FROM numbers GROUP BY k ORDER BY 2 DESC LIMIT 1"


class Holder:
    """Part of a cycle, as caches and exceptions make them: only the collector frees it."""

    def __init__(self) -> None:
        self.connection = connect()
        self.connection.execute("CREATE TABLE numbers AS SELECT range AS r FROM range(1000000)")
        self.expected = self.connection.sql(QUERY).fetchall()
        self.itself = self


def end_of_child(body: Callable[[], int]) -> int:
    """Exit code of a forked process that runs this, minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        os._exit(body())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def collect(*_nothing: object) -> int:
    gc.collect()
    return 0


@pytest.fixture
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
def test_children_do_not_destroy_what_they_inherit() -> None:
    holder = Holder()
    del holder
    assert end_of_child(collect) == 0


def test_children_may_query() -> None:
    holder = Holder()

    def query() -> int:
        return int(holder.connection.sql(QUERY).fetchall() != holder.expected)

    assert end_of_child(query) == 0
    assert query() == 0


def test_the_parent_frees_its_own() -> None:
    holder = Holder()
    connection = weakref.ref(holder.connection)
    assert end_of_child(collect) == 0
    del holder
    gc.collect()
    assert connection() is None
