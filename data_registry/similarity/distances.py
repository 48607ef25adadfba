"""How far apart two sets of slices are: the quantities, each as a function of weighted patients.

``prepare(pair)`` does what does not depend on the patients' weights and gives ``f(a, b)``, the
distance when patient p of the task counts ``a[p]`` times and patient q of pretraining ``b[q]``
times. Ones give the distance itself, counts of a resample its bootstrap. Slices of one patient are
alike, so nothing below takes two of them for independent.

Shapes: N and M slices of the task and of pretraining, D features, P and Q patients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core_mri.moments import Float64s, Moments

Weighted = Callable[[Float64s, Float64s], float]
FIXED_N = 200
"""Slices of each side in distances that depend on how many there are."""
NEIGHBORS = 5
COMPONENTS = 64
_DRAWS = 5
_PROJECTIONS = 128
_FRACTIONS = (0.5, 0.625, 0.75, 0.875, 1.0)
_ORDERS = 3


@dataclass(frozen=True, eq=False)
class Side:
    """The slices of one side."""

    rows: Float64s
    """[N, D]."""
    low: Float64s
    """[N, at most 64], on principal axes that both sides share; empty where not asked for."""
    patients: npt.NDArray[np.int64]
    """[N], 0 to P - 1."""
    labels: npt.NDArray[np.str_]
    """[N], of a distance between labels; empty otherwise."""

    @property
    def num_patients(self) -> int:
        """P."""
        return int(self.patients.max()) + 1


@dataclass(frozen=True, eq=False)
class Pair:
    """What is compared."""

    task: Side
    pretraining: Side


def principal_axes(moments: Moments) -> Float64s:
    """The largest principal axes [D, at most 64] of all pretraining slices.

    Not of the two samples: axes that fit one of them make it look wider than the other.
    """
    _, axes = np.linalg.eigh(moments.covariance)
    return axes[:, ::-1][:, :COMPONENTS]


def kernel_distance(pair: Pair) -> Weighted:
    """KID: unbiased squared maximum mean discrepancy with kernel ``(x . y / D + 1)^3``.

    The mean of k over pairs of the task, plus that over pairs of pretraining, minus twice that over
    mixed pairs; pairs of one patient are left out. For one slice a patient it is the quantity of
    Binkowski et al., Demystifying MMD GANs, ICLR 2018 (arXiv:1801.01401), unbiased for slices; left
    out patients make it so for patients. Below 0 as often as above when both sides are alike.
    """
    x, y = pair.task, pair.pretraining

    def kernel(a: Float64s, b: Float64s) -> Float64s:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(side: Side) -> Callable[[Float64s], float]:
        sums = _by_patient(kernel(side.rows, side.rows), side, side)
        counts = np.bincount(side.patients).astype(np.float64)
        own = np.diag(sums).copy()

        def mean(weights: Float64s) -> float:
            pairs = (weights @ counts) ** 2 - (weights * counts) @ (weights * counts)
            return float((weights @ sums @ weights - weights**2 @ own) / pairs) if pairs else np.nan

        return mean

    first, second = within(x), within(y)
    mixed = _by_patient(kernel(x.rows, y.rows), x, y)
    n_x, n_y = (np.bincount(side.patients).astype(np.float64) for side in (x, y))

    def distance(a: Float64s, b: Float64s) -> float:
        return first(a) + second(b) - 2 * float(a @ mixed @ b / ((a @ n_x) * (b @ n_y)))

    return distance


def frechet_at_fixed_n(pair: Pair) -> Weighted:
    """Frechet distance on principal components, at 200 slices a side, mean of five draws.

    ``|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))``. Its bias at a number of slices is far larger than
    most differences, so distances are comparable at one number only, and with the null beside it.
    Source: Heusel et al., GANs trained by a two time-scale update rule, NeurIPS 2017.
    """
    rng = np.random.default_rng(0)
    draws = [
        tuple(rng.permutation(len(side.low))[:FIXED_N] for side in (pair.task, pair.pretraining))
        for _ in range(_DRAWS)
    ]

    def distance(a: Float64s, b: Float64s) -> float:
        found = [
            frechet(
                _factor(pair.task.low[i], a[pair.task.patients[i]]),
                _factor(pair.pretraining.low[j], b[pair.pretraining.patients[j]]),
            )
            for i, j in draws
        ]
        return float(np.mean(found))

    return distance


def frechet_extrapolated(pair: Pair) -> Weighted:
    """Frechet distance on principal components for infinitely many patients.

    The distance of f of the patients of both sides, f from a half to all, is a line in 1 / f; its
    value at 0 is free of the bias of the first order. After Chong and Forsyth, Effectively unbiased
    FID, CVPR 2020 (arXiv:1911.07023), who leave out slices; leaving out patients takes the
    likeness of their slices into account.
    """
    rng = np.random.default_rng(0)
    sides = (pair.task, pair.pretraining)
    orders = [[rng.permutation(side.num_patients) for side in sides] for _ in range(_ORDERS)]
    inverse = 1 / np.repeat(_FRACTIONS, _ORDERS)
    design = np.stack([np.ones_like(inverse), inverse], 1)

    def distance(a: Float64s, b: Float64s) -> float:
        values = []
        for fraction in _FRACTIONS:
            for order in orders:
                factors = []
                for side, weights, places in zip(sides, (a, b), order, strict=True):
                    kept = np.zeros_like(weights)
                    chosen = places[: max(2, round(fraction * len(places)))]
                    kept[chosen] = weights[chosen]
                    factors.append(_factor(side.low, kept[side.patients]))
                values.append(frechet(*factors))
        return float(np.linalg.lstsq(design, np.array(values), rcond=None)[0][0])

    return distance


def radiomic_distance(pair: Pair) -> Weighted:
    """Frechet radiomic distance: the logarithm of the squared Frechet distance, at 200 slices.

    Features (`radiomics`) become z-scores of the pretraining slices; those that are constant there
    are left out. Source: Konz et al., arXiv:2412.01496, as its tool computes version 1.
    """
    x, y = (side.rows[:FIXED_N] for side in (pair.task, pair.pretraining))
    mean, deviation = y.mean(0), y.std(0)
    varying = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-6)
    x, y = ((rows[:, varying] - mean[varying]) / deviation[varying] for rows in (x, y))
    px, py = (side.patients[:FIXED_N] for side in (pair.task, pair.pretraining))

    def distance(a: Float64s, b: Float64s) -> float:
        squared = frechet(_factor(x, a[px]), _factor(y, b[py]))
        return float(np.log(squared)) if squared > 0 else np.nan

    return distance


def coverage(pair: Pair) -> Weighted:
    """Share of task slices with a pretraining slice within reach.

    Reach of a slice: the distance of its fifth nearest task slice of another patient. Source: Naeem
    et al., Reliable fidelity and diversity metrics, ICML 2020 (arXiv:2002.09797), with the task as
    the real data.
    """
    reach = _reach(pair.task)
    covered = euclidean(pair.task.rows, pair.pretraining.rows).min(1) < reach
    return _mean_over_task(covered.astype(np.float64), pair.task)


def density(pair: Pair) -> Weighted:
    """In how many neighborhoods of pretraining slices a task slice lies, in parts of the expected.

    About 1 for slices of the same kind, 0 for slices outside of all neighborhoods. Source: as
    `coverage`, with pretraining as the real data.
    """
    inside = euclidean(pair.task.rows, pair.pretraining.rows) < _reach(pair.pretraining)[None, :]
    return _mean_over_task(inside.sum(1) / NEIGHBORS, pair.task)


def domain_auroc(pair: Pair) -> Weighted:
    """Area under the ROC curve of a classifier that tells task from pretraining slices.

    Logistic regression on the principal components, judged on patients it was not fitted to; 0.5
    when nothing tells them apart, 1 when everything does.
    """
    scores, is_task, patients = _domain_scores(pair)

    def area(a: Float64s, b: Float64s) -> float:
        weights = np.where(is_task, a[patients * is_task], b[patients * ~is_task])
        order = np.argsort(scores, kind="stable")
        starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
        inside, outside = (
            np.add.reduceat((weights * side)[order], starts) for side in (is_task, ~is_task)
        )
        below = np.cumsum(outside) - outside / 2
        return float(inside @ below / (inside.sum() * outside.sum()))

    return area


def proxy_a(pair: Pair) -> Weighted:
    """Proxy A-distance ``2 (1 - 2 e)``, e the balanced error of the classifier of `domain_auroc`.

    0 when nothing tells the two apart, 2 when everything does. Source: Ben-David et al., Analysis
    of representations for domain adaptation, NeurIPS 2006.
    """
    scores, is_task, patients = _domain_scores(pair)
    wrong = (scores > 0) != is_task

    def distance(a: Float64s, b: Float64s) -> float:
        weights = np.where(is_task, a[patients * is_task], b[patients * ~is_task])
        errors = [
            (weights * wrong)[side].sum() / weights[side].sum() for side in (is_task, ~is_task)
        ]
        return float(2 * (1 - sum(errors)))

    return distance


def sliced_wasserstein(pair: Pair) -> Weighted:
    """Root mean square over 128 directions of the Wasserstein-2 distance along each.

    Quantiles of both sides are compared at ``(i + 1/2) / n``, n the smaller number of slices: for
    equal numbers this is exact. Source: Bonneel et al., Sliced and Radon Wasserstein barycenters,
    J. Math. Imaging Vis. 51 (2015).
    """
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((pair.task.rows.shape[1], _PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    at = (np.arange(min(len(pair.task.rows), len(pair.pretraining.rows))) + 0.5) / min(
        len(pair.task.rows), len(pair.pretraining.rows)
    )
    ordered = []
    for side in (pair.task, pair.pretraining):
        along = side.rows @ directions
        order = np.argsort(along, axis=0)
        ordered.append((np.take_along_axis(along, order, 0), side.patients[order]))

    def distance(a: Float64s, b: Float64s) -> float:
        quantiles = []
        for (along, patients), weights in zip(ordered, (a, b), strict=True):
            reached = np.cumsum(weights[patients], axis=0)
            reached /= reached[-1]
            quantiles.append(
                np.stack(
                    [
                        along[np.searchsorted(reached[:, d], at - 1e-12), d]
                        for d in range(_PROJECTIONS)
                    ]
                )
            )
        return float(np.sqrt(((quantiles[0] - quantiles[1]) ** 2).mean()))

    return distance


def label_divergence(pair: Pair) -> Weighted:
    """Jensen-Shannon divergence, in bits, of how often each label occurs among slices.

    0 for equal shares, 1 for no label in common. Slices whose label is unknown are left out.
    Source: Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Th. 37 (1991).
    """
    words = np.unique(np.concatenate([pair.task.labels, pair.pretraining.labels]))
    counts = []
    for side in (pair.task, pair.pretraining):
        table = np.zeros((side.num_patients, len(words)))
        np.add.at(table, (side.patients, np.searchsorted(words, side.labels)), 1)
        counts.append(table)

    def distance(a: Float64s, b: Float64s) -> float:
        return jensen_shannon(a @ counts[0], b @ counts[1])

    return distance


def jensen_shannon(first: Float64s, second: Float64s) -> float:
    """Divergence in bits of two rows of counts of the same labels."""
    p, q = first / first.sum(), second / second.sum()
    middle = (p + q) / 2

    def relative(shares: Float64s) -> float:
        own = shares > 0
        return float((shares[own] * np.log2(shares[own] / middle[own])).sum())

    return max(0.0, (relative(p) + relative(q)) / 2)


def frechet(first: Float64s, second: Float64s) -> float:
    """Squared Frechet distance of two Gaussians.

    Args:
        first: [1 + N, D]: the mean, then a factor A of the covariance ``A^T A``.
        second: The same of the other.
    """
    mean, a = first[0] - second[0], first[1:]
    b = second[1:]
    if max(len(a), len(b)) <= a.shape[1]:
        # The eigenvalues of C C' are the squared singular values of A B^T.
        root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    else:
        values, vectors = np.linalg.eigh(a.T @ a)
        half = vectors * np.sqrt(np.maximum(values, 0))  # half half^T = C
        product = np.linalg.eigvalsh(half.T @ (b.T @ b) @ half)
        root = np.sqrt(np.maximum(product, 0)).sum()
    return float(mean @ mean + (a**2).sum() + (b**2).sum() - 2 * root)


def _factor(rows: Float64s, weights: Float64s) -> Float64s:
    """Mean and factor of the covariance of weighted rows, as `frechet` takes them."""
    used = weights > 0
    rows, weights = rows[used], weights[used]
    total = weights.sum()
    mean = weights @ rows / total
    return np.vstack([mean, (rows - mean) * np.sqrt(weights / (total - 1))[:, None]])


def _by_patient(values: Float64s, first: Side, second: Side) -> Float64s:
    """Sums [P, Q] of values [N, M] over the slices of each patient."""
    found = np.zeros((first.num_patients, second.num_patients))
    rows = np.zeros((first.num_patients, values.shape[1]))
    np.add.at(rows, first.patients, values)
    np.add.at(found.T, second.patients, rows.T)
    return found


def euclidean(first: Float64s, second: Float64s) -> Float64s:
    """Distances [N, M] of rows [N, D] and [M, D]."""
    squared = (first**2).sum(1)[:, None] + (second**2).sum(1)[None, :] - 2 * first @ second.T
    return np.asarray(np.sqrt(np.maximum(squared, 0)))


def _reach(side: Side) -> Float64s:
    """[N], the distance of the fifth nearest slice of another patient; infinite without so many."""
    apart = euclidean(side.rows, side.rows)
    apart[side.patients[:, None] == side.patients[None, :]] = np.inf
    if len(apart) < NEIGHBORS:
        return np.full(len(apart), np.inf)
    return np.partition(apart, NEIGHBORS - 1, axis=1)[:, NEIGHBORS - 1]


def _mean_over_task(values: Float64s, side: Side) -> Weighted:
    sums = np.bincount(side.patients, values)
    counts = np.bincount(side.patients).astype(np.float64)

    def mean(a: Float64s, b: Float64s) -> float:
        del b
        return float(a @ sums / (a @ counts))

    return mean


def _domain_scores(
    pair: Pair,
) -> tuple[Float64s, npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Log odds of being of the task [N + M], whether they are, and the patient on its side."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = pair.task, pair.pretraining
    rows = np.concatenate([x.low, y.low])
    is_task = np.arange(len(rows)) < len(x.low)
    patients = np.concatenate([x.patients, y.patients])
    folds = StratifiedGroupKFold(
        min(5, x.num_patients, y.num_patients), shuffle=True, random_state=0
    )
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
    )
    scores = cross_val_predict(
        model,
        rows,
        is_task,
        groups=np.where(is_task, patients, x.num_patients + patients),
        cv=folds,
        method="decision_function",
    )
    return np.asarray(scores, np.float64), is_task, patients
