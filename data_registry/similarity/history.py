"""What was found, and when: rows that are only ever added (table ``similarities``)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from data_registry.commits import commit, sole_writer
from data_registry.governance import audit_log
from data_registry.schema import SimilarityRow

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.similarity.compare import Comparison

_NEWEST = """
SELECT "when", task, pretraining, distance, features, value, low, high, "null", patients, slices,
    pretraining_patients, shared_patients, pretraining_digest
FROM similarities WHERE distance = 'KID'
QUALIFY row_number() OVER (
    PARTITION BY task_digest, pretraining_digest, features ORDER BY commit DESC) = 1
ORDER BY task, pretraining, "when"
"""


def record(registry: Registry, found: Comparison) -> int:
    """Add the distances of a comparison.

    Returns:
        The number of rows.

    Raises:
        DataError: DATA-07 when the disk is full, DATA-08 when another process is writing.
    """
    rows = [
        SimilarityRow(
            when=audit_log.now(),
            task=found.task.name,
            task_digest=found.task.digest,
            pretraining=found.pretraining.name,
            pretraining_digest=found.pretraining.digest,
            encoder=found.encoder,
            shared_patients=len(found.shared),
            **dataclasses.asdict(one),
        )
        for one in found.measurements
    ]
    with sole_writer(registry):
        commit(registry, {"similarities": rows})
    what = {"task": found.task.digest, "pretraining": found.pretraining.digest, "rows": len(rows)}
    audit_log.append(registry.path, "similarity", what)
    return len(rows)


def newest(registry: Registry) -> list[dict[str, Any]]:
    """The last KID of each task and pretraining data, for tables."""
    return registry.sql(_NEWEST).to_pylist()
