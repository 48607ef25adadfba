"""Which patients are for training, validation and test: a keyed hash of the patient, nothing else.

The draw depends on the project key and the subject only, so it is the same in any order, on any
machine and however much data is added; the ledger in the catalogue then keeps it for ever, even if
the fractions are changed for later patients.
"""

from __future__ import annotations

import hashlib
import hmac

from data_registry.schema import Split

Fractions = tuple[float, float, float]
DEFAULT_FRACTIONS: Fractions = (0.7, 0.1, 0.2)
"""Parts of train, val, test."""


def split_of(key: bytes, subject_id: str, fractions: Fractions = DEFAULT_FRACTIONS) -> Split:
    """The split of a subject.

    ``u = HMAC-SHA256(key, subject) / 2^64`` is uniform in [0, 1); it is compared with the cumulated
    fractions.

    Args:
        key: Project key.
        subject_id: Keyed pseudonym of the patient.
        fractions: Parts of train, val, test; they sum to 1.

    Raises:
        ValueError: When the fractions are negative or do not sum to 1.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions must be at least 0 and sum to 1, got {fractions}")
    digest = hmac.new(key, f"split:{subject_id}".encode(), hashlib.sha256).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    if draw < fractions[0]:
        return "train"
    return "val" if draw < fractions[0] + fractions[1] else "test"


def split_outside_test(
    key: bytes, subject_id: str, fractions: Fractions = DEFAULT_FRACTIONS
) -> Split:
    """The split of a subject whose data set has official test patients: `split_of` without them.

    Args:
        key: Project key.
        subject_id: Keyed pseudonym of the patient.
        fractions: As `split_of`; only the ratio of train to val counts.
    """
    train, val, _ = fractions
    share = train / (train + val) if train + val else 1.0
    return split_of(key, subject_id, (share, 1 - share, 0.0))
