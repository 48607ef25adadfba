"""The same problems solved by sigpy or by an installed BART: alternatives, and oracles of tests.

Coil maps are theirs too (ESPIRiT with their defaults). sigpy gets the data scaled as ours, so that
one weight means the same; BART scales by its own rule (``pics -S``).
Sources: Ong and Lustig, SigPy, ISMRM 2019; Uecker et al., BART, ISMRM 2015, doi
10.5281/zenodo.592960.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.errors import ConfigError, RunError
from core_mri.physics.fourier import ifft2c
from core_mri.physics.sensitivity import calibration_region
from downstream.reconstruction.config import ReconstructConfig

Array = npt.NDArray[np.complex64]

_WEIGHTS = {"cg-sense": 0.01, "tv": 0.003, "wavelet": 0.002}
"""Where none is given."""
_BART_ITERATIONS = {"cg-sense": 12, "tv": 200, "wavelet": 100}
_SIGPY_ITERATIONS = {"cg-sense": 12, "tv": 300, "wavelet": 100}


def solve(kspace: Tensor, mask: Tensor, config: ReconstructConfig) -> tuple[Tensor, float]:
    """One slice by another library.

    Args:
        kspace: ``[C, H, W]``, zero where not measured.
        mask: ``[W]`` or ``[H, W]``.
        config: Which library, source and settings.

    Returns:
        Complex image ``[H, W]`` and the weight that was used.

    Raises:
        ConfigError: CONFIG-06 when BART is not installed.
        RunError: RUN-02 when BART fails; its last line says why.
        ValueError: No center to find the coil maps from.
    """
    region = calibration_region(mask, kspace.shape[-2])
    weight = _WEIGHTS[config.source] if config.weight is None else config.weight
    samples = kspace.cpu().numpy()
    run = _sigpy if config.backend == "sigpy" else _bart
    image = run(samples, min(region.shape), weight, config)
    return torch.from_numpy(np.ascontiguousarray(image)), weight


def _sigpy(samples: Array, width: int, weight: float, config: ReconstructConfig) -> Array:
    from sigpy.mri import app

    maps = app.EspiritCalib(samples, calib_width=width, show_pbar=False).run()
    zero_filled = (maps.conj() * ifft2c(torch.from_numpy(samples)).numpy()).sum(0)
    scale = float(np.abs(zero_filled).max()) or 1.0
    settings: dict[str, Any] = {
        "max_iter": config.iterations or _SIGPY_ITERATIONS[config.source],
        "show_pbar": False,
    }
    recon = {
        "cg-sense": app.SenseRecon,
        "tv": app.TotalVariationRecon,
        "wavelet": app.L1WaveletRecon,
    }[config.source]
    image: Array = recon(samples / scale, maps, weight, **settings).run() * scale
    return image


def _bart(samples: Array, width: int, weight: float, config: ReconstructConfig) -> Array:
    program = bart_program()
    # BART's axes: readout, phase, partition, coil.
    data = samples.transpose(1, 2, 0)[:, :, None]
    iterations = config.iterations or _BART_ITERATIONS[config.source]
    penalty = {
        "cg-sense": ["-l2", "-r", f"{weight}"],
        "tv": ["-R", f"T:3:0:{weight}"],
        "wavelet": ["-R", f"W:3:0:{weight}"],
    }[config.source]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        write_cfl(here / "data", data)
        _run([program, "ecalib", "-m1", f"-r{width}", "data", "maps"], here)
        _run([program, "pics", "-S", *penalty, "-i", f"{iterations}", "data", "maps", "x"], here)
        return read_cfl(here / "x").reshape(samples.shape[1:], order="F")


def bart_program() -> str:
    """Where BART is.

    Raises:
        ConfigError: CONFIG-06.
    """
    program = shutil.which("bart")
    if program is None:
        raise ConfigError(
            "CONFIG-06", "BART is not installed.", fix="Debian and Ubuntu: apt install bart."
        )
    return program


def _run(words: list[str], folder: Path) -> None:
    done = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError("RUN-02", f"bart {words[1]} failed: {last}")


def write_cfl(path: Path, array: Array) -> None:
    """BART's pair of files: a header with the size, samples in column-major order."""
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{' '.join(map(str, array.shape))}\n")
    np.asfortranarray(array, dtype=np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def read_cfl(path: Path) -> Array:
    """An array of BART's pair of files."""
    size = [int(n) for n in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    return np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(size, order="F")
