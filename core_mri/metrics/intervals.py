"""How sure a mean is, and whether two methods differ: intervals, paired tests, many tests at once.

The unit is the patient, one number each: average slices, structures, draws and seeds of a patient
first (Altman and Bland, Statistics notes: Units of analysis, BMJ 314 (1997) 1874). All results
depend on the arguments only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

_MAX_EXACT = 14  # 2^14 sign patterns are enumerated; more patients are sampled
_NUM_SIGNS = 9999
_BLOCK = 1 << 18


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
    """Bootstrap interval of the mean over patients, as `bootstrap_statistic`.

    Args:
        values: One number per patient ``[n]``, all finite: whether a missing or infinite score is
            left out or replaced is the caller's decision, to be said beside the result.
        num_resamples: How many resampled means.
        level: Confidence level, in (0, 1).
        seed: Of the resampling.

    Raises:
        ValueError: `values` is empty, not one-dimensional or not finite, or `level` out of (0, 1).
    """
    per_patient = _finite(values)
    n = per_patient.size
    found = bootstrap_statistic(
        lambda weights: weights @ per_patient / n,
        n,
        num_resamples=num_resamples,
        level=level,
        seed=seed,
    )
    return replace(found, mean=float(per_patient.mean()))


def bootstrap_statistic(
    statistic: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    n: int,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Expanded percentile bootstrap interval of a statistic of patients.

    Patients are drawn with replacement, n from n; the interval lies between the quantiles a and
    1 - a of the resampled statistic, ``a = Phi(-sqrt(n / (n - 1)) t)`` with t the quantile
    (1 + level) / 2 of Student's t with n - 1 degrees of freedom. The plain percentile interval
    (Efron, Ann. Statist. 7 (1979); a = (1 - level) / 2) estimates the spread with divisor n and
    knows no t, so that for few patients it is too narrow; BCa mends skewness, not that. Source:
    Hesterberg, What teachers should know about the bootstrap, Am. Stat. 69 (2015), 4.3.

    Coverage of a 95 % interval of the mean at n = 8 (1500 simulated studies): normal values 0.94
    (plain 0.88, BCa 0.88), Beta(8, 2) 0.94 (0.87, 0.89), Beta(2, 1/2) 0.91 (0.85, 0.88). No
    resampling covers a failure rarer than the patients are few: with zeros in one of ten patients
    0.69 at n = 8, 0.94 at n = 50.

    Args:
        statistic: Takes how often each patient counts ``[R, n]`` (0, 1, 2, ...) and gives one
            number a row ``[R]``; nan where it is not defined. Such resamples are left out.
        n: Number of patients.
        num_resamples: How many resamples.
        level: Confidence level, in (0, 1).
        seed: Of the resampling.

    Returns:
        The statistic of the patients as they are, and its interval: nan with one patient, or when
        no resample defines it.

    Raises:
        ValueError: `level` out of (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    value = float(statistic(np.ones((1, n)))[0])
    nothing = Interval(value, float("nan"), float("nan"), n)
    if n == 1:
        return nothing
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)  # resamples at once, for the memory
    parts = []
    for start in range(0, num_resamples, block):
        drawn = rng.integers(n, size=(min(block, num_resamples - start), n))
        weights = np.zeros(drawn.shape)
        np.add.at(weights, (np.arange(len(drawn))[:, None], drawn), 1)
        parts.append(statistic(weights))
    resampled = np.concatenate(parts)
    if np.isnan(resampled).all():
        return nothing
    tail = expanded_tail(n, level)
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Interval(value, float(low), float(high), n)


def expanded_tail(n: int, level: float = 0.95) -> float:
    """The share of resamples beyond each end of an interval: a of `bootstrap_statistic`, n >= 2."""
    from scipy.special import ndtr, stdtrit

    return float(ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + level) / 2)))


def paired_permutation(
    a: npt.ArrayLike, b: npt.ArrayLike, *, seed: int = 0, num_resamples: int = _NUM_SIGNS
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


def smallest_p(n: int) -> float:
    """The smallest p-value that `paired_permutation` can give for n patients.

    ``2 / 2^n`` for up to 14 patients, ``1 / 10000`` above. With 5 patients it is 0.0625: no
    difference, however large, is significant.
    """
    return min(1.0, 2.0 ** (1 - n)) if n <= _MAX_EXACT else 1 / (1 + _NUM_SIGNS)


def detectable_difference(
    differences: npt.ArrayLike, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """The smallest true mean difference that a study like this one would find.

    With s the standard deviation of the paired differences of n patients, the two-sided paired
    t-test has power ``P(|T| > t)``, T of the noncentral t distribution with n - 1 degrees of
    freedom and noncentrality ``sqrt(n) d / s``, t its critical value; solved for d. A planning
    figure: s is itself uncertain, and for many values the sign-flip test is about as strong as the
    t-test. Source: Cohen, Statistical power analysis for the behavioral sciences (1988), 2.

    Args:
        differences: One per patient ``[n]``, finite.
        power: Chance to find it, in (alpha, 1).
        alpha: Level of the test, in (0, 1).

    Returns:
        In the unit of `differences`; nan with one patient, 0 when all differences are equal.

    Raises:
        ValueError: Empty, not one-dimensional or not finite.
    """
    from scipy.optimize import brentq
    from scipy.special import nctdtr, stdtrit

    paired = _finite(differences)
    n = paired.size
    if n == 1:
        return float("nan")
    df = n - 1
    critical = float(stdtrit(df, 1 - alpha / 2))

    def missing(shift: float) -> float:
        # The other tail is below 1e-6 of the power wherever the power is at least one half.
        return power - (1 - float(nctdtr(df, shift, critical)))

    shift = brentq(missing, 0.0, 10 * critical)
    return float(shift * paired.std(ddof=1) / math.sqrt(n))


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
