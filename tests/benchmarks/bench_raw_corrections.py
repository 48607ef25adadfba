"""What whitening and the removal of readout oversampling do on a real ISMRMRD scan.

    CORE_MRI_DATA=... python tests/benchmarks/bench_raw_corrections.py [--figure FILE.png]

The 14-coil phantom of CORE_MRI_DATA (real raw data, R = 3 beyond 48 calibration lines), thinned to
its lines of R = 3 and 24 center lines. Signal-to-noise ratio by pseudo replicas: noise drawn from
the covariance of the scan's own noise readouts is added again and again to the samples, and the
standard deviation of the CG-SENSE image (maps fixed, so the reconstruction is linear) is taken
pixel by pixel. Source: Robson et al., Comprehensive quantification of signal-to-noise ratio and
g-factor, MRM 60 (2008).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from core_mri.files import read_kspace
from core_mri.physics import Sense, conjugate_gradient, noise_covariance, whitening_matrix
from core_mri.physics.classical import coil_maps, reconstruct
from core_mri.physics.preparation import center_crop

REPLICAS, NOISE_FLAG = 60, 19


def covariance_of(path: Path) -> Tensor:
    """Of the noise readouts in the file."""
    with h5py.File(path) as file:
        rows = file["dataset/data"][:]
    noise = [
        row["data"].view(np.complex64).reshape(row["head"]["active_channels"], -1)
        for row in rows
        if int(row["head"]["flags"]) >> (NOISE_FLAG - 1) & 1
    ]
    return noise_covariance(torch.from_numpy(np.concatenate(noise, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(os.environ["CORE_MRI_DATA"], "kspace", "phantom_14ch_R3_ismrmrd.h5")
    covariance = covariance_of(path)
    spread = covariance.diagonal().real.sqrt()
    print(f"noise of the coils, least to most: {float(spread.max() / spread.min()):.2f}-fold")
    with read_kspace(path, whiten=False) as kspace:
        raw = torch.from_numpy(kspace.read_slice(0))
        lines = np.flatnonzero(kspace.mask())
    center = raw.shape[2] // 2
    mask = torch.zeros(raw.shape[2], dtype=torch.bool)
    mask[[n for n in lines if n % 3 == lines[0] % 3 or abs(n - center + 0.5) < 12]] = True
    raw = raw * mask
    lower = torch.linalg.cholesky(covariance)
    white = whitening_matrix(covariance)
    snr = {}
    for name, matrix in (("as it came", torch.eye(len(raw)) + 0j), ("whitened", white)):
        samples = torch.einsum("vc,chw->vhw", matrix, raw)
        sense = Sense(coil_maps(samples, mask).maps, mask[None])

        def image(data: Tensor, sense: Sense = sense) -> Tensor:
            return conjugate_gradient(sense.normal, sense.adjoint(data), num_iterations=15)

        clean, generator = image(samples), torch.Generator().manual_seed(0)
        total = torch.zeros_like(clean.real)
        for _ in range(REPLICAS):
            grain = torch.randn(raw.shape, dtype=torch.complex64, generator=generator)
            noise = torch.einsum("vc,chw->vhw", matrix @ lower, grain) * mask
            total += image(noise).abs() ** 2
        snr[name] = clean.abs() / (total / REPLICAS).sqrt().clamp_min(1e-30)
        inside = clean.abs() > 0.3 * clean.abs().quantile(0.9)
        print(f"{name}: median SNR in the phantom {float(snr[name][inside].median()):.0f}")
    gain = (snr["whitened"] / snr["as it came"])[inside]
    print(f"whitening: SNR x {float(gain.median()):.3f} (median)")
    print(f"in the best 5 %: x {float(gain.quantile(0.95)):.2f} or more")
    images = {}
    for remove in (True, False):
        with read_kspace(path, remove_oversampling=remove) as kspace:
            samples = torch.from_numpy(kspace.read_slice(0)) * mask
        reconstruct(samples, mask)
        start = time.process_time()
        images[remove] = center_crop(reconstruct(samples, mask).image.abs(), tuple(raw.shape[1:]))
        seconds, state = time.process_time() - start, "removed" if remove else "kept"
        print(f"oversampling {state}: {tuple(samples.shape[1:])} samples, {seconds:.2f} CPU-s")
    difference = (images[True] - images[False]).norm() / images[True].norm()
    print(f"difference of the two images: {100 * float(difference):.1f} %")
    if options.figure:
        from core_mri.pictures import contact_sheet

        shown = {"SNR as it came": snr["as it came"], "SNR whitened": snr["whitened"],
                 "gain": (snr["whitened"] / snr["as it came"]) * inside}  # fmt: skip
        sheet = contact_sheet([x.numpy() for x in shown.values()], list(shown))
        sheet.savefig(options.figure, dpi=192)


if __name__ == "__main__":
    main()
