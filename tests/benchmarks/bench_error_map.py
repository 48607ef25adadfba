"""Does the error map of `core-mri reconstruct --error-map` lie where the errors are?

    CORE_MRI_DATA=... python -m tests.benchmarks.bench_error_map

Simulated k-space of `bench_reconstruction.py`'s scored images (320x320, 12 coils, random masks, one
slice each, seed 7). Printed is the correlation over all pixels of the map with the magnitude of the
true error; and, as what any map so smooth could reach, that of the true error smoothed as the map.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from core_mri.physics import reconstruct
from downstream.reconstruction.halves import SMOOTHING, error_map, halves
from tests.benchmarks.bench_reconstruction import RATES, REAL, SCORED, load, simulate

METHODS = ("zero-filled", "cg-sense", "wavelet")


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def main() -> None:
    torch.set_num_threads(1)
    names = [name for name in SCORED if name in REAL or name.startswith("phantom")]
    rows = []
    print(f"{'image, rate':24s} " + " ".join(f"{m:>12s}" for m in METHODS) + "  bound of wavelet")
    for name in names:
        for rate, center in RATES:
            kspace, mask, reference = simulate(load(name), rate, center, seed=7)
            row = []
            for method in METHODS:
                image, *parts = (
                    reconstruct(kspace * lines, lines, method).image.abs().numpy()  # type: ignore[arg-type]
                    for lines in (mask, *map(torch.from_numpy, halves(mask.numpy())))
                )
                error = np.abs(image - reference[0])
                row.append(correlation(error_map(image, *parts), error))
            row.append(correlation(gaussian_filter(error, SMOOTHING), error))
            print(f"{name + f' {rate}x':24s} " + " ".join(f"{value:12.2f}" for value in row))
            rows.append(row)
    print(f"{'mean':24s} " + " ".join(f"{value:12.2f}" for value in np.mean(rows, 0)))


if __name__ == "__main__":
    main()
