"""What can be asked of `core-mri reconstruct`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from core_mri.errors import ConfigError

Source = Literal["zero-filled", "cg-sense", "tv", "wavelet", "grappa"]
Backend = Literal["torch", "sigpy", "bart"]
MaskName = Literal["random", "equispaced", "equispaced_fraction", "magic", "magic_fraction"]


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """Slices of a raw data file: fastMRI or ISMRMRD HDF5, complex .npy, Siemens .dat.

    Coil maps come from the fully sampled center of k-space; the strength of the regularization from
    the noise of the scan. Running the same command again continues an interrupted one.
    """

    source: Annotated[str, tyro.conf.Positional]
    """zero-filled, cg-sense, tv, wavelet (the best of them), or grappa (extra `grappa`)."""
    kspace: Annotated[Path, tyro.conf.Positional]
    """The raw data file."""
    out: Path
    """F.h5 (dataset `reconstruction` [slices, H, W] float32, as the fastMRI leaderboard wants it),
    F.nii.gz, or a new folder for a DICOM series."""
    mask: MaskName | None = None
    """Undersample fully sampled data by this kind of mask first; a mask in the file wins."""
    acceleration: float = 4.0
    """Of --mask."""
    center_fraction: float = 0.08
    """Part of the lines that --mask keeps at the center."""
    seed: str = "FILE"
    """Of --mask: FILE takes fastMRI's seed of the file name, or a whole number."""
    weight: float | None = None
    """Regularization over the largest value of the data; cg-sense: the ridge. From the noise when
    not given."""
    iterations: int | None = None
    """Iterations of the solver; 12, 30 and 50 for cg-sense, tv and wavelet when not given."""
    maps: Literal["espirit", "low-resolution"] = "espirit"
    """Coil maps; espirit needs 12 fully sampled lines and gives way to low-resolution below."""
    partial_fourier: Literal["none", "homodyne", "pocs"] = "none"
    """What to do about lines that one side of k-space lacks; needs a smooth phase."""
    backend: Backend = "torch"
    """Who solves it: torch, or sigpy or an installed BART for tv, wavelet and cg-sense."""
    volume: int = 0
    """Which volume, where the file has repetitions, contrasts or phases."""
    whiten: bool = True
    """ISMRMRD: decorrelate the coils by the noise scan of the file."""
    remove_oversampling: bool = True
    """ISMRMRD: cut the readout to the field of view of the image before anything else."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    report: Path | None = None
    """Write a page with pictures, zoom, 5x error panels where there is a reference, and times."""

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ConfigError(
                "CONFIG-01",
                f"SOURCE {self.source!r}: must be one of {', '.join(get_args(Source))}; networks "
                "for reconstruction are not released yet.",
            )
        if self.seed != "FILE" and not self.seed.isdigit():
            raise ConfigError(
                "CONFIG-01", f"--seed {self.seed!r}: must be FILE or a whole number of 0 or more."
            )
        if self.weight is not None and not self.weight >= 0:
            raise ConfigError("CONFIG-01", f"--weight {self.weight}: must be 0 or more.")
        if self.iterations is not None and self.iterations < 1:
            raise ConfigError("CONFIG-01", f"--iterations {self.iterations}: must be 1 or more.")
        if self.backend != "torch" and self.source not in ("cg-sense", "tv", "wavelet"):
            raise ConfigError(
                "CONFIG-05",
                f"--backend {self.backend} solves cg-sense, tv and wavelet, not {self.source}.",
                fix="Leave out --backend.",
            )
