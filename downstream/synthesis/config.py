"""What can be asked of `core-mri synthesize`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core_mri.errors import ConfigError
from core_mri.models.generator_config import GeneratorConfig
from core_mri.physics.label_to_image import Physics
from data_registry.schema import Codec
from downstream.config import SuiteConfig, Task
from downstream.synthesis.edits import Edit

PHYSICS = "physics"
"""Name of the generator that needs no training."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """How a label map that names few structures becomes a whole anatomy."""

    tissues: int = 4
    """What no structure covers is divided by its intensity into so many tissues, called tissue 1
    (the darkest) and so on; 0 leaves it one background. Areas of value 0 in all sequences stay 0,
    as outside of a brain without its skull."""
    smoothing: float = 0.7
    """Standard deviation of the blur before the division, voxels."""

    def __post_init__(self) -> None:
        if not 0 <= self.tissues <= 32 or self.smoothing < 0:
            raise ConfigError("CONFIG-05", "tissues lies in [0, 32], smoothing is 0 or more.")


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    """How a generator is fitted."""

    batch_size: int = 8
    """Slices a step, of all workers together."""
    learning_rate: float = 2e-4
    """Of the generator (Adam); the discriminators take twice as much (TTUR)."""
    ema: float = 0.995
    """Momentum of averaged weights, which are released; 0 releases the last ones."""
    mirror: bool = False
    """Mirror slices at random; refused where a structure's name has left or right in it."""
    reconstruction: float = 10.0
    """Spade: weight of the absolute error of images rebuilt from their own style."""
    features: float = 10.0
    """Spade: weight of the match of the discriminators' features."""
    divergence: float = 0.05
    """Spade: weight of the divergence of styles from a normal distribution."""
    discriminator_width: int = 32
    """Spade: channels of the first layer of the two patch discriminators."""
    autoencoder_steps: int = 2000
    """Latent diffusion: the first steps, which train the autoencoder; the others train the
    diffusion of its codes, which then stay as they are."""
    code_divergence: float = 1e-6
    """Latent diffusion: weight of the divergence of codes from a normal distribution, summed over a
    code, beside the mean absolute error of pixels."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.learning_rate, self.discriminator_width) <= 0:
            raise ConfigError(
                "CONFIG-05", "batch_size, learning_rate and discriminator_width must be positive."
            )
        if self.autoencoder_steps < 1:
            raise ConfigError("CONFIG-05", "autoencoder_steps must be 1 or more.")
        if not 0 <= self.ema < 1:
            raise ConfigError("CONFIG-05", f"ema must lie in [0, 1), got {self.ema}.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fit a generator to the labelled training patients of a registry."""

    registry: Path
    """Folder of the data registry."""
    out: Path
    """Output folder; an unfinished run of the same configuration is continued."""
    task: Task
    """Which scans and structures (kind segmentation); `sequences` makes one generator of several
    contrasts."""
    seed: int = 0
    """Of the weights, the batches and the noise."""
    steps: int = 20_000
    """Optimiser steps."""
    seconds: float = 0.0
    """Stop after so many seconds of steps, however many of them are left; 0 makes them all. What
    comes out then depends on the machine; ``metrics.jsonl`` tells how many steps were made."""
    patients: int = 0
    """Train on so many patients only, the first of the seeded draw that a few-shot run of the same
    seed makes; 0 takes all of the train split."""
    anatomy: Anatomy = field(default_factory=Anatomy)
    """How label maps become whole anatomies."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """Its sizes."""
    training: GeneratorTraining = field(default_factory=GeneratorTraining)
    """How it is fitted."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        check_task(self.task)
        first = self.training.autoencoder_steps
        if self.generator.space == "latent" and self.steps <= first:
            raise ConfigError(
                "CONFIG-05",
                f"steps {self.steps} are no more than training.autoencoder_steps {first}: nothing "
                "is left for the diffusion.",
            )
        if min(self.steps, self.checkpoint_every) < 1 or min(self.patients, self.seconds) < 0:
            raise ConfigError(
                "CONFIG-05",
                "steps and checkpoint_every must be 1 or more, patients and seconds 0 or more.",
            )


@dataclass(frozen=True, kw_only=True)
class LesionPlan:
    """Lesions put into the label maps of samples."""

    structure: str = ""
    """Structure that is the lesion; empty edits nothing."""
    inside: tuple[str, ...] = ()
    """Names of the tissues that it may lie in, such as white matter, or tissue 3."""
    chance: float = 1.0
    """How often a sample gets one."""
    volume_ml: tuple[float, float] = (0.0, 0.0)
    """Range of volumes, even on a logarithmic scale; zeros keep the volumes of the shapes."""
    mass_effect: float = 0.0
    """As `downstream.synthesis.edits.Edit`."""
    clear: bool = False
    """Heal the patient's own lesions first."""
    shapes: str = ""
    """SQL condition on label volumes of the train split whose structure of this name gives the
    shapes, such as source = 'open_ms_data'; empty takes those of the samples' own patients."""

    def __post_init__(self) -> None:
        low, high = self.volume_ml
        if bool(self.structure) != bool(self.inside):
            raise ConfigError("CONFIG-05", "a lesion needs a structure and tissues it may lie in.")
        if not 0 <= low <= high or (low == 0 < high) or not 0 <= self.chance <= 1:
            raise ConfigError(
                "CONFIG-05",
                f"volume_ml must ascend from above 0, chance lie in [0, 1]; got {self}.",
            )


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Make pairs of synthetic scans and label maps from training patients."""

    registry: Path
    """Folder of the data registry."""
    out: Path
    """New folder for the pairs; an unfinished run of the same configuration is continued."""
    task: Task
    """Which label maps and structures."""
    generator: str = PHYSICS
    """physics, or the weights folder of a trained generator."""
    source: str = "synthetic"
    """Name of the source that the pairs become."""
    count: int = 100
    """Pairs."""
    seed: int = 0
    """Determines everything."""
    patients: int = 0
    """As in training: label maps of so many patients of the draw only; 0 takes all."""
    anatomy: Anatomy = field(default_factory=Anatomy)
    """How label maps become whole anatomies; a trained generator brings its own."""
    lesions: LesionPlan = field(default_factory=LesionPlan)
    """What is edited."""
    label_maps: str = ""
    """Physics alone: SQL condition on label volumes of the train split that are whole anatomies by
    themselves, such as source = 'synthseg'. They need no scan, and neither `task.where`, `patients`
    nor `anatomy` are read; values that the task does not name are tissues, called value N."""
    signals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    """Physics alone: sequence (empty where the task names none) to range of the mean signal by
    name of a structure or tissue, with * and ?; the first that fits counts, others are drawn from
    `physics.mean`. It makes a contrast that looks like a certain sequence."""
    deform: bool = True
    """Turn, scale and bend every label map as `physics` says, before lesions are put in: no sample
    then shows the anatomy of a patient as it is."""
    physics: Physics = field(default_factory=Physics)
    """How far anatomies vary, and scans of the physics generator."""
    ingest: bool = True
    """Add the pairs to the registry at once."""
    key_file: Path | None = None
    """Project key of the registry; the one beside it when None."""
    compression: Codec = "bitshuffle-lz4"
    """How the registry stores the pairs: bitshuffle-lz4, or none, which needs no filter of HDF5."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        check_task(self.task)
        if self.count < 1 or self.patients < 0:
            raise ConfigError("CONFIG-05", "count must be 1 or more, patients 0 or more.")
        if self.generator != PHYSICS and (self.label_maps or self.signals):
            raise ConfigError(
                "CONFIG-05",
                "label_maps and signals are for the generator physics; a trained one brings its "
                "own contrast and is given labelled scans.",
            )
        sequences = self.task.sequences or ("",)
        if strange := sorted(set(self.signals) - set(sequences)):
            raise ConfigError(
                "CONFIG-05",
                f"signals: {strange} are no sequences of the task, which are {list(sequences)}.",
            )
        for names in self.signals.values():
            for name, (low, high) in names.items():
                if not 0 <= low <= high <= 1:
                    raise ConfigError(
                        "CONFIG-05",
                        f"signals of {name!r} must ascend within [0, 1], got ({low:g}, {high:g}).",
                    )
        if not self.source.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(
                "CONFIG-05",
                f"source {self.source!r} must be letters, digits, dash or underscore.",
            )


@dataclass(frozen=True, kw_only=True)
class EditConfig:
    """Change a label map and make a scan of it."""

    labels: Path
    """Label map of a brain, healthy or not."""
    names: tuple[str, ...]
    """What its values are, such as 1=csf 2="gray matter" 3="white matter" 4=lesion."""
    structure: str
    """Name of the lesion."""
    inside: tuple[str, ...]
    """Names of the tissues that it may lie in."""
    out: Path
    """Folder for the pair."""
    shapes: tuple[Path, ...] = ()
    """Label maps of patients whose lesions are the shapes to insert."""
    shapes_value: int = 1
    """Value of lesions in them."""
    change: int = -1
    """Number of a lesion of the label map (0 is the largest) to grow, shrink, move or mirror in
    place of inserting one."""
    edit: Edit = field(default_factory=Edit)
    """What is asked for."""
    generator: str = PHYSICS
    """physics, or the weights folder of a trained generator of these structures."""
    physics: Physics = field(default_factory=lambda: Physics(rotation=0, scale=0, shift=0,
                                                             displacement=0))  # fmt: skip
    """How scans of the physics generator vary; here the anatomy stays where it is."""
    scan_seed: int = 0
    """Of what the scan looks like; the same for several edits gives one look."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        known = self.values
        if self.change < 0 and not self.shapes:
            raise ConfigError(
                "CONFIG-05", "give shapes to insert a lesion, or the number of one to change."
            )
        unknown = [name for name in (self.structure, *self.inside) if name not in known.values()]
        if unknown:
            raise ConfigError(
                "CONFIG-05",
                f"no value is named {', '.join(unknown)}; names are {', '.join(known.values())}.",
            )

    @property
    def values(self) -> dict[int, str]:
        """Value to name.

        Raises:
            ConfigError: CONFIG-01 for anything but VALUE=NAME.
        """
        pairs = [entry.partition("=") for entry in self.names]
        if not all(value.isdigit() and int(value) and name for value, _, name in pairs):
            raise ConfigError(
                "CONFIG-01", f"names must be VALUE=NAME, values above 0; got {list(self.names)}."
            )
        return {int(value): name for value, _, name in pairs}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How like real scans synthetic ones are, what they are worth, and whom they copy."""

    registry: Path
    """Folder of the data registry; it holds real and synthetic scans."""
    out: Path
    """Output folder."""
    task: Task
    """Real scans and the synthetic ones beside them."""
    source: str = "synthetic"
    """Name of the synthetic source."""
    encoder: str = ""
    """Weights whose features distances are taken in, besides radiomic ones; empty: radiomics
    alone."""
    seed: int = 0
    """Of what is shuffled and resampled."""
    reader_slices: int = 40
    """Slices on the page for readers, half of them real; 0 writes none."""
    suite: SuiteConfig | None = None
    """Segmentation suite to run three times: on real, on synthetic, and on both; None leaves it
    out."""
    mixed_share: float = 0.5
    """Share of synthetic slices in the batches of the third run."""

    def __post_init__(self) -> None:
        check_task(self.task)
        if self.reader_slices < 0 or not 0 < self.mixed_share < 1:
            raise ConfigError(
                "CONFIG-05", "reader_slices must be 0 or more, mixed_share lie between 0 and 1."
            )


Role = Literal["real", "synthetic", "both"]


def check_task(task: Task) -> None:
    """Generators learn from masks."""
    if task.kind != "segmentation":
        raise ConfigError(
            "CONFIG-05", f"task {task.name}: synthesis takes a segmentation task, not {task.kind}."
        )
