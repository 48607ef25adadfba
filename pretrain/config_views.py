"""What the networks see of a slice: crops, flips, and how intensities are changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core_mri.errors import ConfigError

Range = tuple[float, float]


def require(condition: bool, message: str, *, fix: str = "") -> None:
    """Raise ConfigError CONFIG-05 with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError("CONFIG-05", message, fix=fix)


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Crops of a slice and how they are changed, in the order of the fields.

    Each change is drawn for each view. Ranges hold for intensities in [0, 1].
    """

    num_global: int = 2
    """Global views of a slice: 2 for distillation, 1 is enough for ``mae`` and ``ijepa``."""
    global_size: int = 224
    """Side of a global view, px; a multiple of the patch size."""
    global_scale: Range = (0.32, 1.0)
    """Area of a global crop as a fraction of the slice, lowest and highest."""
    local_size: int = 96
    """Side of a local view, px; a multiple of the patch size."""
    local_scale: Range = (0.05, 0.32)
    """Area of a local crop as a fraction of the slice, lowest and highest."""
    num_local: int = 8
    """Local views of a slice; 0 trains on the global views alone."""
    aspect: Range = (0.75, 1.3333)
    """Width / height of a crop, lowest and highest, drawn log-uniformly."""
    adjacent_slices: int = 0
    """The second global view and every other local one come from a slice of the same volume that
    is at most so many slices away; 0 takes all views from one slice."""
    flip_rows: float = 0.0
    """Probability of an upside-down view."""
    flip_columns: float = 0.0
    """Probability of a mirrored view: left and right change places on axial and coronal slices."""
    flip_where: tuple[str, ...] = ("*/*",)
    """Which slices may be flipped, as ``region/plane`` with wildcards: ``*/sagittal`` keeps left
    and right apart wherever a slice shows both."""
    window: Literal["volume", "slice"] = "volume"
    """What is black and white: the 0.5 and 99.5 percentiles of the volume, as everywhere else, or
    those of each slice by itself; probes keep to the volume's."""
    gamma_probability: float = 0.5
    """Probability of another gamma."""
    gamma: Range = (0.6667, 1.5)
    """Exponent of the intensities, drawn log-uniformly."""
    bias_probability: float = 0.3
    """Probability of a bias field, as of receive coils."""
    bias_ratio: Range = (1.2, 3.0)
    """Its highest value / its lowest, drawn log-uniformly."""
    low_field_probability: float = 0.1
    """Probability of the resolution and the noise of a scanner of low field."""
    low_field_resolution: Range = (0.4, 0.8)
    """Resolution that is left, as a fraction of that of the view."""
    low_field_noise: Range = (0.02, 0.12)
    """Standard deviation of its complex noise / root mean square intensity of the view."""
    ringing_probability: float = 0.1
    """Probability of Gibbs ringing."""
    ringing_kept: Range = (0.4, 0.8)
    """Part of k-space that is kept along each axis."""
    undersampling_probability: float = 0.1
    """Probability of zero-filled undersampled k-space."""
    undersampling_acceleration: Range = (1.5, 3.0)
    """Acceleration: lines of a full scan / lines measured."""
    undersampling_center: float = 0.16
    """Part of the lines that is the fully sampled center."""
    noise_probability: float = 0.3
    """Probability of Rician noise."""
    noise_sigma: Range = (0.0, 0.1)
    """Standard deviation of the complex noise / root mean square intensity of the view."""
    blur_probability: float = 0.3
    """Probability of a Gaussian blur."""
    blur_sigma_px: Range = (0.1, 2.0)
    """Standard deviation of the blur, px of the view."""
    sharpen_probability: float = 0.1
    """Probability of an unsharp mask."""
    sharpen_amount: Range = (0.2, 1.0)
    """How much of the detail (what a blur of 1 px removes) is added."""
    contrast_probability: float = 0.5
    """Probability that brightness and contrast are changed."""
    brightness: float = 0.15
    """Largest relative change of all intensities."""
    contrast: float = 0.2
    """Largest relative change of the contrast about the mean of the view."""

    def __post_init__(self) -> None:
        for name in ("global_scale", "local_scale", "low_field_resolution", "ringing_kept"):
            low, high = getattr(self, name)
            require(
                0 < low <= high <= 1, f"views.{name} must be 0 < low <= high <= 1, got {low, high}."
            )
        for name in ("aspect", "gamma", "blur_sigma_px"):
            low, high = getattr(self, name)
            require(0 < low <= high, f"views.{name} must be 0 < low <= high, got {low, high}.")
        for name in ("noise_sigma", "low_field_noise", "sharpen_amount"):
            low, high = getattr(self, name)
            require(0 <= low <= high, f"views.{name} must be 0 <= low <= high, got {low, high}.")
        for name in ("bias_ratio", "undersampling_acceleration"):
            low, high = getattr(self, name)
            require(1 <= low <= high, f"views.{name} must be 1 <= low <= high, got {low, high}.")
        probabilities = [name for name in self.__dataclass_fields__ if name.endswith("probability")]
        for name in ("flip_rows", "flip_columns", *probabilities):
            value = getattr(self, name)
            require(0 <= value <= 1, f"views.{name} is a probability, got {value}.")
        for name in ("brightness", "contrast"):
            value = getattr(self, name)
            require(0 <= value < 1, f"views.{name} must lie in [0, 1), got {value}.")
        center, fastest = self.undersampling_center, self.undersampling_acceleration[1]
        require(
            0 < center * fastest <= 0.8,
            f"views.undersampling_center must lie between 0 and 0.8 / acceleration, got {center} "
            f"with an acceleration up to {fastest}.",
        )
        require(
            self.num_global in (1, 2), f"views.num_global must be 1 or 2, got {self.num_global}."
        )
        for name in ("num_local", "adjacent_slices"):
            value = getattr(self, name)
            require(value >= 0, f"views.{name} must not be negative, got {value}.")
