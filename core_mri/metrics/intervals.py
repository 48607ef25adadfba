"""How sure a mean is, and whether two methods differ: intervals, paired tests, many tests at once.

The unit is the patient, one number each: average slices, structures, draws and seeds of a patient
first (Altman and Bland, Statistics notes: Units of analysis, BMJ 314 (1997) 1874). All results
depend on the arguments only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_MAX_EXACT = 14  # 2^14 sign patterns are enumerated; more patients are sampled


@dataclass(frozen=True)
class Interval:
    """A mean over patients and its confidence interval."""

    mean: float
    """Mean of the patients' values, in their unit."""

    low: float
    """Lower end, same unit; nan with one patient."""

    high: float
    """Upper end, same unit; nan with one patient."""

    n: int
    """Number of patients."""


def bootstrap_interval(
    values: npt.ArrayLike, *, num_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the mean over patients.

    Patients are drawn with replacement, n from n, `num_resamples` times; the interval is the middle
    `level` of the resampled means. Source: Efron, Bootstrap methods: another look at the jackknife,
    Ann. Statist. 7 (1979). It is too narrow for few patients (the spread is estimated with divisor
    n, not n - 1): below 8 read it as a description, not as evidence.

    Args:
        values: One number per patient ``[n]``, all finite: whether a missing or infinite score is
            left out or replaced is the caller's decision, to be said beside the result.
        num_resamples: How many resampled means.
        level: Share of resampled means inside the interval, in (0, 1).
        seed: Of the resampling.

    Raises:
        ValueError: `values` is empty, not one-dimensional or not finite, or `level` out of (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    per_patient = _finite(values)
    n = per_patient.size
    mean = float(per_patient.mean())
    if n == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    rng = np.random.default_rng(seed)
    means = [per_patient[rng.integers(n, size=n)].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), n)


def paired_permutation(
    a: npt.ArrayLike, b: npt.ArrayLike, *, seed: int = 0, num_resamples: int = 9999
) -> float:
    """Two-sided p-value that the mean of ``a - b`` over the same patients is zero, by sign flips.

    If both methods are alike, each patient's difference is as likely as its negative; p is the
    share of the 2^n sign patterns whose mean is at least as far from zero as the observed one. All
    of them for up to 14 patients (smallest p: 2 / 2^n), else `num_resamples` random ones and the
    observed one, ``(1 + count) / (1 + num_resamples)``. Sources: Fisher, The design of experiments
    (1935); Phipson and Smyth, Permutation p-values should never be zero, SAGMB 9 (2010).

    Args:
        a: One number per patient ``[n]``, finite.
        b: The other method's numbers, same patients in the same order.
        seed: Of the random sign patterns; without effect for up to 14 patients.
        num_resamples: How many random sign patterns.

    Returns:
        p in (0, 1]; 1.0 when nothing differs.

    Raises:
        ValueError: The lists are empty, not finite or of different length.
    """
    first, second = _finite(a), _finite(b)
    if first.shape != second.shape:
        raise ValueError(f"expected the same patients, got {first.size} and {second.size} numbers")
    difference = first - second
    n = difference.size
    total = difference.sum()
    # Sums of the same numbers in another order may differ by rounding; they must count as equal.
    observed = abs(total) - 1e-12 * np.abs(difference).sum()
    if n <= _MAX_EXACT:
        flipped = (np.arange(2**n)[:, None] >> np.arange(n)) & 1  # [2^n, n]
        return float((np.abs(total - 2 * (flipped @ difference)) >= observed).mean())
    rng = np.random.default_rng(seed)
    flips = (rng.integers(2, size=n) for _ in range(num_resamples))
    count = sum(abs(total - 2 * (flipped @ difference)) >= observed for flipped in flips)
    return float((1 + count) / (1 + num_resamples))


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """P-values adjusted for their number: comparing them with alpha bounds the family-wise error.

    In ascending order ``p'_(k) = max over j <= k of min(1, (m - j + 1) p_(j))``. Source: Holm, A
    simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).

    Args:
        p_values: ``[m]``, each in [0, 1]; all tests of one family, chosen before looking.

    Returns:
        Adjusted p-values ``[m]`` in the order given.

    Raises:
        ValueError: Not one-dimensional, or a value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be one list of numbers in [0, 1], got {p}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    steps = np.minimum(1.0, np.arange(p.size, 0, -1) * p[order])
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def _finite(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"expected one finite number per patient, got {array}")
    return array
