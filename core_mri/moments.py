"""Mean and covariance of features that need not fit into memory: sums that add up exactly.

``n``, ``sum x`` and ``sum x x^T`` of any group of rows are the sums over its parts, so those of
single volumes give mean and covariance of every cohort, whatever was put into it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Sufficient statistics of rows of D features, in float64."""

    n: int
    """Rows."""
    total: Float64s
    """[D], sum of the rows."""
    outer: Float64s
    """[D, D], sum of ``x x^T``."""

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Of no rows of `width` features."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, rows: npt.NDArray[np.floating]) -> Moments:
        """Of rows [N, D].

        Raises:
            DataError: DATA-37 when a feature is not finite.
        """
        check_finite(rows)
        exact = rows.astype(np.float64)
        return cls(len(exact), exact.sum(0), exact.T @ exact)

    def __add__(self, other: Moments) -> Moments:
        """Of the rows of both."""
        return Moments(self.n + other.n, self.total + other.total, self.outer + other.outer)

    def __sub__(self, other: Moments) -> Moments:
        """Of the rows without those of `other`, which are among them."""
        return Moments(self.n - other.n, self.total - other.total, self.outer - other.outer)

    @property
    def mean(self) -> Float64s:
        """[D]."""
        return self.total / self.n

    @property
    def covariance(self) -> Float64s:
        """[D, D] with divisor n - 1; zeros of a single row."""
        mean = self.mean
        return (self.outer - self.n * np.outer(mean, mean)) / max(self.n - 1, 1)


def check_finite(rows: npt.NDArray[np.floating]) -> None:
    """See that features can be compared.

    Raises:
        DataError: DATA-37 when one is not finite.
    """
    broken = ~np.isfinite(rows).all(1)
    if broken.any():
        raise DataError(
            "DATA-37",
            f"the features of {int(broken.sum())} of {len(rows)} slices are not finite.",
            fix="Look at the weights (a diverged training?) and at the voxels of these scans.",
        )
