"""DuckDB databases that a fork leaves alone.

Loaders of training data fork (`torch.utils.data.DataLoader`, `multiprocessing` on Linux), and a
database has threads that the child does not get. Its destructor, which the child's garbage
collector may call at any time, waits for them and ends the child with a segmentation fault. A child
therefore never destroys a database that it inherited; it may query it, on its one thread.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

_open: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()


def connect() -> duckdb.DuckDBPyConnection:
    """A database in memory, of this process."""
    import duckdb

    connection = duckdb.connect()
    _open.add(connection)
    return connection


def _keep_inherited() -> None:
    for connection in _open:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # outlives the interpreter too


os.register_at_fork(after_in_child=_keep_inherited)
