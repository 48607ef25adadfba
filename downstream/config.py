"""What can be asked of `core-mri finetune` and `core-mri evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core_mri.errors import ConfigError

Adaptation = Literal["frozen", "head", "full"]
Protocol = Literal["volumes", "paper"]
BaselineName = Literal["unet", "nnunetv2", "myopari"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question put to an encoder: which scans, and what is to be told from them."""

    name: str
    """Short name for tables and file names: letters, digits, dash, underscore."""
    kind: Literal["segmentation", "classification", "clustering"]
    """segmentation scores masks per patient and structure; classification scores one class per
    volume; clustering scores clusters of frozen features as masks, without training."""
    where: str = ""
    """SQL condition on the volume columns of the registry, such as "source = 'phantoms' AND region
    = 'abdomen'"; empty takes every image."""
    labels: dict[str, int] = field(default_factory=dict)
    """Segmentation, clustering: structure name to its value in the label volumes; 0 is background
    and not listed."""
    label_where: str = ""
    """Segmentation, clustering: SQL condition that picks the label volume where an image has
    several."""
    other_labels: Literal["error", "background"] = "error"
    """Segmentation, clustering: what a label value outside `labels` means; error names the volume
    and the value."""
    tolerances: dict[str, float] = field(default_factory=dict)
    """Segmentation: structure name to the deviation of its surface that the metric nsd forgives, in
    mm (pixels where no spacing is known); 1 for those not named."""
    k: tuple[int, ...] = ()
    """Segmentation: numbers of labelled examples in place of the suite's; empty takes those."""
    optional: bool = False
    """Too few labelled patients leave the cells of the task empty instead of failing them."""
    target: Literal["", "sequence", "region"] = ""
    """Classification: the volume column that holds the class."""

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise ConfigError(
                "CONFIG-05",
                f"task name {self.name!r} must be letters, digits, dash or underscore.",
            )
        strange = sorted(set(self.tolerances) - set(self.labels))
        if strange or any(value < 0 for value in self.tolerances.values()):
            raise ConfigError(
                "CONFIG-05",
                f"task {self.name}: tolerances are numbers of 0 or more for names of labels, "
                f"{sorted(self.labels)}; got {self.tolerances}.",
            )
        _check_counts(**{f"task {self.name}: k[{i}]": k for i, k in enumerate(self.k)})
        if self.kind != "classification":
            self._check_labels()
        elif not self.target or self.labels or self.label_where:
            raise ConfigError(
                "CONFIG-05",
                f"task {self.name}: a classification task has a target and no labels or "
                "label_where.",
                fix="Set target to sequence or region.",
            )

    def _check_labels(self) -> None:
        values = list(self.labels.values())
        if not values or min(values) < 1 or len(set(values)) < len(values) or self.target:
            raise ConfigError(
                "CONFIG-05",
                f"task {self.name}: a {self.kind} task has no target, and labels with distinct "
                f"values of 1 or more; got {self.labels}.",
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is fitted; the pretrained encoder and its random twin always share it."""

    image_size: int = 224
    """Side in pixels of the slices given to the encoder, a multiple of its patch size; scores are
    always taken on the stored grid."""
    shots_unit: Literal["volumes", "slices"] = "volumes"
    """What the k labelled examples of a segmentation task are."""
    num_validation: int = 5
    """Labelled examples from validation patients, of the same unit; they choose the step that is
    kept. 0 keeps the last step."""
    validate_every: int = 25
    """Steps between two looks at the validation patients."""
    batch_size: int = 8
    """Slices per step."""
    learning_rate: float = 5e-3
    """Peak learning rate of the head (AdamW, short warm-up, cosine to 0)."""
    encoder_learning_rate: float = 1e-4
    """Peak learning rate of the encoder when it moves (adaptation full)."""
    weight_decay: float = 0.05
    """AdamW weight decay."""
    warmup_fraction: float = 0.05
    """Share of the steps spent raising the learning rate from 0."""
    num_levels: int = 4
    """Depths of the encoder that feed the segmentation head, spread evenly."""
    head_width: int = 32
    """Channels of the segmentation head at patch resolution."""
    augmented_copies: int = 2
    """Adaptation frozen: randomly changed copies of each training slice kept beside the original,
    since cached features cannot be augmented afresh at every step. 0 adds none."""
    cache_gb: float = 2.0
    """Memory in GB for the features of a cell's examples; beyond it they are recomputed."""

    def __post_init__(self) -> None:
        positive = {
            "image_size": self.image_size,
            "validate_every": self.validate_every,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "encoder_learning_rate": self.encoder_learning_rate,
            "num_levels": self.num_levels,
            "head_width": self.head_width,
        }
        wrong = [f"recipe.{name} = {value}" for name, value in positive.items() if value <= 0]
        if wrong:
            raise ConfigError("CONFIG-05", f"must be positive: {', '.join(wrong)}.")
        if self.num_validation < 0 or self.augmented_copies < 0 or self.weight_decay < 0:
            raise ConfigError(
                "CONFIG-05",
                "recipe.num_validation, recipe.augmented_copies and recipe.weight_decay must be 0 "
                "or more.",
            )
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError("CONFIG-05", "recipe.warmup_fraction must lie in [0, 1).")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One encoder on one task, beside its random-initialised twin."""

    registry: Path
    """Folder of the data registry."""
    out: Path
    """Output folder; an unfinished run of the same configuration is continued."""
    weights: str
    """Encoder: anything core_mri.load_model accepts, such as the weights folder of a pretraining
    run."""
    task: Task
    """What to learn."""
    k: int = 5
    """Labelled training volumes or slices (recipe.shots_unit) of a segmentation task; a
    classification task uses every training volume."""
    draws: int = 1
    """Seeded choices of the k examples; the model and the predictions of the first one are kept."""
    seed: int = 0
    """Seed of the draws, the heads, the batches and the random twin."""
    steps: int = 150
    """Optimiser steps of a segmentation cell."""
    adaptation: Adaptation = "frozen"
    """Which weights move: frozen (a head on features cached once), head (encoder still, every step
    augmented afresh), full (everything)."""
    recipe: Recipe = field(default_factory=Recipe)
    """How the model is fitted."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    allow_overlap: str = ""
    """Reason why test patients may also have been pretraining patients; empty refuses such a
    run."""

    def __post_init__(self) -> None:
        _check_counts(k=self.k, draws=self.draws, steps=self.steps)
        if self.task.k or self.task.optional:
            raise ConfigError(
                "CONFIG-05", f"task {self.task.name}: k and optional belong to tasks of a suite."
            )
        if self.task.kind == "clustering":
            raise ConfigError(
                "CONFIG-05",
                f"task {self.task.name}: clustering trains nothing.",
                fix="Put it into a suite: core-mri evaluate.",
            )


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Several encoders on several tasks: one table, one report."""

    registry: Path
    """Folder of the data registry."""
    out: Path
    """Output folder; finished cells of an earlier start are kept."""
    weights: dict[str, str]
    """Name for the tables to source for core_mri.load_model; the first one gets the pictures."""
    tasks: tuple[Task, ...]
    """Tasks with distinct names."""
    k: tuple[int, ...] = (5,)
    """Numbers of labelled training volumes or slices for the segmentation tasks."""
    clusters: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    """Numbers of clusters for the clustering tasks; the k of their results."""
    draws: int = 3
    """Seeded choices of the k examples, or starts of a clustering."""
    seed: int = 0
    """Seed of the draws, the heads, the batches and the random twins."""
    steps: int = 150
    """Optimiser steps of a segmentation cell."""
    adaptation: Adaptation = "frozen"
    """Which weights move: frozen, head or full, as in FinetuneConfig."""
    protocol: Protocol = "volumes"
    """Segmentation: volumes draws patients and scores whole volumes in mm; paper does as MRI-CORE
    published (`downstream.segmentation.paper`), whose results are not comparable with others."""
    tuning: tuple[float, ...] = (1.0,)
    """Segmentation: factors on the learning rates. Every contender is trained with each of them and
    tested with the one that is best on its validation patients."""
    baselines: tuple[BaselineName, ...] = ()
    """Segmentation: unet (2D, from scratch, planned like nnU-Net), nnunetv2 (the program itself)
    and myopari (a released model of the heart); the latter two where they are installed."""
    baseline_steps: int = 0
    """Optimiser steps of a baseline; 0 takes `steps`. Nets from scratch need more of them than a
    decoder on features does, and may be given more."""
    recipe: Recipe = field(default_factory=Recipe)
    """How every model is fitted."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    allow_overlap: str = ""
    """Reason why test patients may also have been pretraining patients; empty refuses such a
    suite."""
    reuse: tuple[Path, ...] = ()
    """Folders of earlier runs; their finished cells count where nothing they depend on differs."""

    def __post_init__(self) -> None:
        _check_counts(
            draws=self.draws, steps=self.steps, **{f"k[{i}]": k for i, k in enumerate(self.k)}
        )
        if not all(2 <= count <= 256 for count in self.clusters):
            raise ConfigError(
                "CONFIG-05", f"clusters must lie between 2 and 256, got {list(self.clusters)}."
            )
        if self.baseline_steps < 0:
            raise ConfigError(
                "CONFIG-05", f"baseline_steps must be 0 or more, got {self.baseline_steps}."
            )
        if not self.tuning or min(self.tuning) <= 0 or len(set(self.tuning)) < len(self.tuning):
            raise ConfigError(
                "CONFIG-05", f"tuning must be distinct positive factors, got {list(self.tuning)}."
            )
        if len(self.tuning) > 1 and not self.recipe.num_validation:
            raise ConfigError(
                "CONFIG-05",
                f"tuning {list(self.tuning)} is decided by validation examples, and "
                "recipe.num_validation is 0.",
                fix="Raise recipe.num_validation, or leave one factor.",
            )
        if self.protocol == "paper" and self.recipe.shots_unit != "slices":
            raise ConfigError(
                "CONFIG-05",
                "protocol paper labels slices, and recipe.shots_unit is volumes.",
                fix="Set recipe.shots_unit to slices.",
            )
        if taken := sorted(set(self.weights) & set(self.baselines)):
            raise ConfigError("CONFIG-05", f"weights may not have the name of a baseline: {taken}.")
        names = [task.name for task in self.tasks]
        if not names or not self.weights or not self.k:
            raise ConfigError("CONFIG-05", "a suite needs at least one of each: weights, tasks, k.")
        if len(set(names)) < len(names) or len(set(self.k)) < len(self.k):
            raise ConfigError(
                "CONFIG-05", f"task names and k must be distinct: {names}, {list(self.k)}."
            )


def _check_counts(**counts: int) -> None:
    wrong = [f"{name} = {count}" for name, count in counts.items() if count < 1]
    if wrong:
        raise ConfigError("CONFIG-05", f"must be 1 or more: {', '.join(wrong)}.")
