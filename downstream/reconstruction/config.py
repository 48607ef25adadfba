"""What can be asked of `core-mri reconstruct`."""

from __future__ import annotations

import dataclasses
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
    """zero-filled, cg-sense, tv, wavelet (the best of them), grappa (extra `grappa`), or weights of
    a network: a folder, or fastmri-unet:FILE, fastmri-varnet:FILE."""
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
    error_map: bool = False
    """Estimate where the image is wrong from two halves of the samples, at three times the work: a
    dataset `error_map` in F.h5, else F_error beside F."""
    report: Path | None = None
    """Write a page with pictures, zoom, 5x error panels where there is a reference, and times."""
    json: bool = False
    """Print what was done as JSON, with the residual of the measured samples of each slice."""

    def __post_init__(self) -> None:
        if self.is_network and not names_weights(self.source):
            raise ConfigError(
                "CONFIG-01",
                f"SOURCE {self.source!r}: must be one of {', '.join(get_args(Source))}, a folder "
                "of weights, fastmri-unet:FILE or fastmri-varnet:FILE.",
            )
        if self.is_network:
            self._refuse_classical()
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

    @property
    def is_network(self) -> bool:
        """Whether the source is weights."""
        return self.source not in get_args(Source)

    def _refuse_classical(self) -> None:
        """Settings of solvers, which change nothing in a network."""
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        names = ("weight", "iterations", "maps", "partial_fourier")
        given = [name for name in names if getattr(self, name) != fields[name]]
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ConfigError(
                "CONFIG-05",
                f"{flags}: of zero-filled, cg-sense, tv and wavelet; networks have no such "
                "setting.",
                fix=f"Leave out {flags}.",
            )


def names_weights(source: str) -> bool:
    """Whether a source can be weights: ``FAMILY:FILE``, ``hf:...`` or a folder that is there."""
    return ":" in source or Path(source).is_dir()
