"""Radiomic features of a slice: what it looks like in formulas, with no network that learned.

In the spirit of the Frechet radiomic distance (Konz et al., Medical Image Analysis 2026,
arXiv:2412.01496; its tool needs a pyradiomics that no registry has): first-order statistics and the
co-occurrence of gray levels, of the slice at 2 mm, of its Laplacians of Gaussians (2 to 5 mm) and
of the four bands of a stationary wavelet (coif1). Definitions: Zwanenburg et al., The image
biomarker standardization initiative, Radiology 295 (2020), 3.3 and 3.6.

What differs from the published tool, version 1: 351 features, not 464, without run lengths, size
zones and gray tone differences; 32 gray levels of each image in place of bins of width 5; the
co-occurrence matrices of the four directions are averaged, not their features; no mask.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core_mri.moments import Float64s

GRID_MM = 2.0
SIGMAS_MM = (2.0, 3.0, 4.0, 5.0)
LEVELS = 32
FIRST_ORDER = (
    "energy", "entropy", "minimum", "10th percentile", "90th percentile", "maximum", "mean",
    "median", "interquartile range", "range", "mean absolute deviation",
    "robust mean absolute deviation", "root mean square", "skewness", "kurtosis", "variance",
    "uniformity",
)  # fmt: skip
CO_OCCURRENCE = (
    "autocorrelation", "joint average", "cluster prominence", "cluster shade", "cluster tendency",
    "contrast", "correlation", "difference average", "difference entropy", "difference variance",
    "joint energy", "joint entropy", "information correlation 1", "information correlation 2",
    "inverse difference moment", "normalized inverse difference moment", "inverse difference",
    "normalized inverse difference", "inverse variance", "maximum probability", "sum entropy",
    "sum of squares",
)  # fmt: skip
IMAGES = (
    "slice", *(f"Laplacian {mm:g} mm" for mm in SIGMAS_MM),
    "wavelet LL", "wavelet LH", "wavelet HL", "wavelet HH",
)  # fmt: skip
NAMES = tuple(f"{image}: {name}" for image in IMAGES for name in (*FIRST_ORDER, *CO_OCCURRENCE))
"""Of each feature, in order."""
_SMALLEST, _LARGEST = 16, 256


def radiomic_features(
    image: npt.NDArray[np.floating], spacing_mm: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """Features of one slice.

    Args:
        image: [H, W].
        spacing_mm: Of rows and columns.

    Returns:
        [351] float32, named by `NAMES`.
    """
    return np.concatenate(
        [
            part
            for derived in _derived(image, spacing_mm)
            for levels in (_levels(derived),)
            for part in (_first_order(derived, levels), _co_occurrence(levels))
        ]
    ).astype(np.float32)


def _derived(image: npt.NDArray[np.floating], spacing_mm: tuple[float, float]) -> list[Float64s]:
    """The slice at 2 mm with mean 0 and deviation 100, and what filters make of it."""
    import pywt
    from scipy.ndimage import gaussian_laplace
    from skimage.transform import resize

    sides = (max(round(n * mm / GRID_MM), 1) for n, mm in zip(image.shape, spacing_mm, strict=True))
    shape = tuple(min(max(side, _SMALLEST), _LARGEST) // 2 * 2 for side in sides)
    small = resize(image.astype(np.float64), shape, order=1, mode="edge", anti_aliasing=True)
    small = 100 * (small - small.mean()) / max(float(small.std()), 1e-12)
    # Times sigma^2, so that one blob answers alike at all scales.
    blobs = [
        (mm / GRID_MM) ** 2 * gaussian_laplace(small, mm / GRID_MM, mode="nearest")
        for mm in SIGMAS_MM
    ]
    ((low, (lh, hl, hh)),) = pywt.swt2(small, "coif1", level=1)
    return [small, *blobs, low, lh, hl, hh]


def _levels(image: Float64s) -> npt.NDArray[np.uint8]:
    """Gray levels 0 to `LEVELS` - 1 of equal width."""
    low, high = float(image.min()), float(image.max())
    scaled = (image - low) * (LEVELS / max(high - low, 1e-12))
    return np.minimum(scaled, LEVELS - 1).astype(np.uint8)


def _first_order(image: Float64s, levels: npt.NDArray[np.uint8]) -> Float64s:
    x = image.ravel()
    low, p10, p25, median, p75, p90, high = np.percentile(x, (0, 10, 25, 50, 75, 90, 100))
    mean, variance = x.mean(), x.var()
    apart = x - mean
    inner = x[(x >= p10) & (x <= p90)]
    shares = np.bincount(levels.ravel(), minlength=LEVELS) / x.size
    deviation = max(variance, 1e-24) ** 0.5
    return np.array(
        [
            (x**2).mean(), _entropy(shares), low, p10, p90, high, mean, median, p75 - p25,
            high - low, np.abs(apart).mean(), np.abs(inner - inner.mean()).mean(),
            (x**2).mean() ** 0.5, (apart**3).mean() / deviation**3,
            (apart**4).mean() / deviation**4, variance, (shares**2).sum(),
        ]
    )  # fmt: skip


def _co_occurrence(levels: npt.NDArray[np.uint8]) -> Float64s:
    """Of neighbors at distance 1, both ways, mean of four directions: p(i, j), i and j from 1."""
    from skimage.feature import graycomatrix

    angles = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
    p = graycomatrix(levels, [1], angles, LEVELS, symmetric=True, normed=True).mean((2, 3))
    i = np.arange(1, LEVELS + 1, dtype=np.float64)
    row, column = i[:, None], i[None, :]
    gap = np.abs(row - column)
    own = p.sum(1)  # of rows and of columns alike: p is symmetric
    mean = float(own @ i)
    variance = float(own @ (i - mean) ** 2)
    about = row + column - 2 * mean
    gaps = np.bincount(gap.astype(int).ravel(), p.ravel(), LEVELS).astype(np.float64)
    sums = np.bincount((row + column).astype(int).ravel(), p.ravel()).astype(np.float64)
    k = np.arange(LEVELS)
    average_gap = float(gaps @ k)
    joint, single = _entropy(p), _entropy(own)
    product = own[:, None] * own[None, :]
    hxy1 = -(p * np.log2(np.where(product > 0, product, 1))).sum()
    hxy2 = _entropy(product)
    return np.array(
        [
            (p * row * column).sum(), mean, (p * about**4).sum(), (p * about**3).sum(),
            (p * about**2).sum(), (p * gap**2).sum(),
            ((p * row * column).sum() - mean**2) / variance if variance > 1e-12 else 1.0,
            average_gap, _entropy(gaps), gaps @ (k - average_gap) ** 2, (p**2).sum(), joint,
            (joint - hxy1) / single if single > 1e-12 else 0.0,
            np.sqrt(max(0.0, 1 - np.exp(-2 * (hxy2 - joint)))),
            (p / (1 + gap**2)).sum(), (p / (1 + gap**2 / LEVELS**2)).sum(),
            (p / (1 + gap)).sum(), (p / (1 + gap / LEVELS)).sum(),
            gaps[1:] @ (1 / k[1:] ** 2.0), p.max(), _entropy(sums), variance,
        ]
    )  # fmt: skip


def _entropy(shares: Float64s) -> float:
    """In bits."""
    positive = shares[shares > 0]
    return float(-(positive * np.log2(positive)).sum())
