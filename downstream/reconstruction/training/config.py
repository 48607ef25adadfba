"""What can be asked of `core-mri finetune` for reconstruction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core_mri.errors import ConfigError
from downstream.reconstruction.config import MaskName
from downstream.reconstruction.training.losses.features import MAX_WEIGHT
from downstream.reconstruction.training.losses.holdout import Selection

NetworkName = Literal["unet", "varnet", "unrolled"]
Supervision = Literal["supervised", "self-supervised", "joint", "zero-shot"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is trained."""

    name: NetworkName = "unrolled"
    """unet: fastMRI's U-Net on the zero-filled image; varnet: E2E-VarNet; unrolled: our few steps
    between denoiser and data (`core_mri.models.unrolled`)."""
    channels: int = 16
    """Of the first level."""
    pools: int = 3
    """Levels below the first."""
    steps: int = 6
    """unrolled, varnet: unrolled steps."""
    steps_per_denoiser: int = 2
    """unrolled: consecutive steps that share their weights."""
    denoiser: Literal["unet", "resnet"] = "unet"
    """unrolled: a small U-Net, or SSDU's residual blocks (with `channels` 64)."""
    num_blocks: int = 15
    """unrolled, resnet: residual blocks."""
    warm_start: Literal["wavelet", "cg-sense"] = "wavelet"
    """unrolled: the classical image it begins with."""
    data_steps: int = 4
    """unrolled: conjugate gradients towards the data in each step; 0 is one gradient step."""
    readout_coils: int = 0
    """unrolled: combinations of coils at each readout position; 0 is all of them, which is exact; 5
    is faster and as good."""
    start: str = ""
    """Weights folder of a net of the same sizes to go on from, such as one trained on simulated
    data; empty starts at random."""


@dataclass(frozen=True, kw_only=True)
class InnerEncoder:
    """A pretrained encoder inside an unrolled net."""

    weights: str = ""
    """Anything core_mri.load_model accepts; empty leaves the encoder out."""
    random: bool = False
    """Take random weights of the same architecture instead: the twin."""
    adaptation: Literal["frozen", "lora", "full"] = "frozen"
    """What of it moves."""
    lora_rank: int = 8
    """Of the low-rank changes with `lora`."""
    learning_rate: float = 1e-5
    """Of its weights with `full`; LoRA moves at the rate of the net."""
    num_levels: int = 4
    """Depths of it that are read, spread evenly."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """How magnitude images of a registry become simulated k-space of several coils."""

    size: int = 160
    """Side of the square matrix in pixels; larger images lose their outer k-space, smaller ones are
    padded."""
    coils: int = 6
    """Receive coils, on a ring that is drawn afresh for each slice."""
    noise: float = 0.004
    """Standard deviation of the complex noise; an image has a largest value of 1."""


@dataclass(frozen=True, kw_only=True)
class Undersampling:
    """What is left of fully sampled data."""

    masks: tuple[MaskName, ...] = ("random",)
    """Kinds of fastMRI's masks, one of which is drawn for each slice."""
    accelerations: tuple[float, ...] = (4.0, 8.0)
    """Ascending."""
    center_fractions: tuple[float, ...] = (0.08, 0.04)
    """Part of the lines kept at the center, one an acceleration."""
    between: bool = False
    """Training also draws accelerations between the smallest and the largest."""

    def __post_init__(self) -> None:
        rates, fractions = self.accelerations, self.center_fractions
        if not rates or len(rates) != len(fractions) or list(rates) != sorted(set(rates)):
            raise ConfigError(
                "CONFIG-05",
                f"accelerations {list(rates)} must ascend, with as many center_fractions, got "
                f"{list(fractions)}.",
            )
        if rates[0] < 1 or not all(0 < fraction < 1 for fraction in fractions) or not self.masks:
            raise ConfigError(
                "CONFIG-05",
                "accelerations must be 1 or more, center_fractions lie in (0, 1), and masks name "
                f"one kind at least; got {list(rates)}, {list(fractions)}, {list(self.masks)}.",
            )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What the net is judged by in training."""

    holdout_share: float = 0.4
    """Self-supervision: measured points that are kept back (rho)."""
    holdout_selection: Selection = "gaussian"
    """gaussian (denser at the center), uniform, or lines."""
    splits: int = 1
    """Divisions of each slice in a step; more than one is multi-mask."""
    holdout_weight: float = 1.0
    """Of the self-supervised term beside the supervised one, in joint training."""
    equivariance_weight: float = 0.0
    """Of the answer to the image moved and measured again; 0 leaves it out."""
    noise_weight: float = 0.0
    """Of the answer to the data with more noise; 0 leaves it out."""
    added_noise: float = 0.01
    """Of these two, over the largest value of a slice."""
    feature_weight: float = 0.0
    """Of the distance in the feature space of the encoder, labelled slices only, in the last 30 %
    of the steps; at most 0.05."""

    def __post_init__(self) -> None:
        if not 0 < self.holdout_share < 1 or self.splits < 1:
            raise ConfigError(
                "CONFIG-05",
                f"loss.holdout_share {self.holdout_share} must lie in (0, 1), loss.splits "
                f"{self.splits} be 1 or more.",
            )
        weights = {
            name: getattr(self, name)
            for name in ("holdout_weight", "equivariance_weight", "noise_weight", "added_noise")
        }
        if min(weights.values()) < 0 or not 0 <= self.feature_weight <= MAX_WEIGHT:
            raise ConfigError(
                "CONFIG-05",
                f"weights of losses must be 0 or more ({weights}), loss.feature_weight at most "
                f"{MAX_WEIGHT} ({self.feature_weight}): a large one invents structures.",
            )


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How the weights move."""

    batch_size: int = 1
    """Slices a step."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """adamw with warm-up and cosine, or fastMRI's rmsprop."""
    learning_rate: float = 5e-4
    """Peak."""
    weight_decay: float = 0.0
    """Of all weights."""
    warmup_fraction: float = 0.02
    """Of the steps; adamw."""
    drop_at: float = 0.0
    """rmsprop: part of the steps after which the rate is a tenth, as epoch 40 of 50; 0: never."""
    max_gradient_norm: float = 1.0
    """Gradients are cut to this length; 0 leaves them."""
    ema: float = 0.0
    """Momentum of averaged weights, which are the ones released; 0: none."""
    augment: bool = True
    """Flip, turn, scale and shift images before they are measured (MRAugment's idea)."""
    validate_every: int = 100
    """Steps."""
    num_validation: int = 16
    """Slices of validation patients, spread evenly; they choose the step that is kept. 0: none."""
    validate_by: Literal["holdout", "reference"] = "reference"
    """reference: SSIM; holdout: a fifth of the measured points, which needs no reference (opt-in:
    see "Legal note" in downstream/README.md)."""
    patience: int = 0
    """Looks at validation without a gain before stopping; 0: never stop."""

    def __post_init__(self) -> None:
        wrong = [
            f"fitting.{name} = {getattr(self, name)}"
            for name in ("batch_size", "learning_rate", "validate_every")
            if getattr(self, name) <= 0
        ]
        wrong += [
            f"fitting.{name} = {getattr(self, name)}"
            for name in ("weight_decay", "max_gradient_norm", "num_validation", "patience")
            if getattr(self, name) < 0
        ]
        wrong += [
            f"fitting.{name} = {getattr(self, name)}"
            for name in ("warmup_fraction", "drop_at", "ema")
            if not 0 <= getattr(self, name) < 1
        ]
        if wrong:
            raise ConfigError("CONFIG-05", f"out of range: {', '.join(wrong)}.")


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """One network for reconstruction, trained and tested on patients apart."""

    registry: Path | None = None
    """Folder of the data registry, whose magnitude images become simulated k-space; or none, and
    raw data files instead."""
    where: str = ""
    """SQL condition on the volume columns of the registry."""
    train: tuple[Path, ...] = ()
    """Raw data files or folders of them (fastMRI, ISMRMRD, .npy) to train on."""
    validation: tuple[Path, ...] = ()
    """Raw data of other patients, which choose the step that is kept."""
    test: tuple[Path, ...] = ()
    """Raw data of still other patients, which are scored."""
    out: Path
    """Output folder; an unfinished run of the same configuration is continued."""
    seed: int = 0
    """Of weights, order, coils, phases, noise, masks, splits."""
    steps: int = 0
    """Optimiser steps; 0 takes `epochs`."""
    epochs: int = 0
    """Passes over the training slices, where `steps` is 0."""
    supervision: Supervision = "supervised"
    """supervised by references; self-supervised by measured points that are kept back (hold-out,
    opt-in: see "Legal note" in downstream/README.md); joint by both; zero-shot: by the points of
    one scan (`train`), a fifth of which only says when to stop."""
    labelled: int = 0
    """Training patients whose references may be used, chosen by seed; 0: all of them."""
    network: Network = field(default_factory=Network)
    """What is trained."""
    encoder: InnerEncoder = field(default_factory=InnerEncoder)
    """unrolled: a pretrained encoder inside."""
    simulation: Simulation = field(default_factory=Simulation)
    """Of a registry's images."""
    undersampling: Undersampling = field(default_factory=Undersampling)
    """Of fully sampled data; a mask in a file wins."""
    loss: Loss = field(default_factory=Loss)
    """What the net is judged by."""
    fitting: Fitting = field(default_factory=Fitting)
    """How the weights move."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    allow_overlap: str = ""
    """Reason why test patients may also have been pretraining patients of the encoder; empty
    refuses such a run."""

    def __post_init__(self) -> None:
        if (self.registry is None) == (not self.train):
            raise ConfigError(
                "CONFIG-05", "training data is either a registry or a list of raw data (train)."
            )
        if (self.steps > 0) == (self.epochs > 0) or min(self.steps, self.epochs) < 0:
            raise ConfigError(
                "CONFIG-05",
                f"one of steps ({self.steps}) and epochs ({self.epochs}) is positive, the other 0.",
            )
        if self.labelled < 0:
            raise ConfigError("CONFIG-05", f"labelled is {self.labelled}, must be 0 or more.")
        if self.network.name != "unrolled" and (
            self.supervision != "supervised"
            or self.encoder.weights
            or self.fitting.validate_by != "reference"
        ):
            raise ConfigError(
                "CONFIG-05",
                f"network {self.network.name} is trained and validated by references, without an "
                "encoder inside.",
                fix="Set supervision: supervised, encoder.weights: '', fitting.validate_by: "
                "reference, or network.name: unrolled.",
            )
        if self.supervision == "zero-shot" and (
            len(self.train) != 1
            or self.validation
            or not self.fitting.num_validation
            or self.fitting.validate_by != "holdout"
            or self.fitting.augment
        ):
            raise ConfigError(
                "CONFIG-05",
                "supervision zero-shot fits one file (train) to its own samples.",
                fix="Name one file under train, none under validation; fitting.augment: false, "
                "fitting.num_validation: 8, fitting.validate_by: holdout.",
            )
        if self.loss.feature_weight and not self.encoder.weights:
            raise ConfigError(
                "CONFIG-05", "loss.feature_weight needs an encoder (encoder.weights)."
            )
