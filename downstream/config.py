"""What can be asked of `core-mri finetune` and `core-mri evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core_mri.errors import ConfigError

Adaptation = Literal["frozen", "head", "full"]
Level = Literal["slice", "volume", "patient"]
Method = Literal["linear probe", "knn", "attention"]
TARGETS = ("sequence", "region", "source", "vendor", "plane", "contrast")
"""Columns of the registry that may be the class of a volume."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question put to an encoder: which scans, and what is to be told from them."""

    name: str
    """Short name for tables and file names: letters, digits, dash, underscore."""
    kind: Literal["segmentation", "classification", "clustering"]
    """segmentation scores masks per patient and structure; classification scores one class per
    slice, volume or patient; clustering scores clusters of frozen features as masks, without
    training."""
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
    target: str = ""
    """Classification: the column that holds the class: of `table` when there is one, else of the
    registry's volumes (sequence, region, source, vendor, plane or contrast)."""
    table: Path | None = None
    """Classification: CSV of labels with a column `volume` (and perhaps `slice`, 0-based) or
    `subject`, ids of the registry, and the column `target`."""
    level: Level = "volume"
    """Classification: what has one class. A volume has that of its patient, a slice that of its
    volume, where the table says it of those."""
    methods: tuple[Method, ...] = ("linear probe", "knn")
    """Classification: linear probe and knn on frozen features, averaged over the slices of a
    volume and the volumes of a patient; attention: a trained pooling over them, with the encoder
    still or moving (adaptation)."""

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise ConfigError(
                "CONFIG-05",
                f"task name {self.name!r} must be letters, digits, dash or underscore.",
            )
        if self.kind != "classification":
            self._check_labels()
        elif not self.target or self.labels or self.label_where or not self.methods:
            raise ConfigError(
                "CONFIG-05",
                f"task {self.name}: a classification task has a target, methods, and no labels or "
                "label_where.",
                fix="Set target to sequence or region.",
            )
        elif self.table is None and self.target not in TARGETS:
            raise ConfigError(
                "CONFIG-05",
                f"task {self.name}: target {self.target!r} is no column of the registry.",
                fix=f"Use {', '.join(TARGETS)}, or give a table that has the column.",
            )

    def _check_labels(self) -> None:
        values = list(self.labels.values())
        foreign = self.target or self.table
        if not values or min(values) < 1 or len(set(values)) < len(values) or foreign:
            raise ConfigError(
                "CONFIG-05",
                f"task {self.name}: a {self.kind} task has no target or table, and labels with "
                f"distinct values of 1 or more; got {self.labels}.",
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
    slices_per_example: int = 16
    """Classification by attention with fresh augmentation or a moving encoder: slices drawn from
    each example at each step."""

    def __post_init__(self) -> None:
        positive = {
            "image_size": self.image_size,
            "validate_every": self.validate_every,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "encoder_learning_rate": self.encoder_learning_rate,
            "num_levels": self.num_levels,
            "head_width": self.head_width,
            "slices_per_example": self.slices_per_example,
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
    """Labelled training volumes or slices (recipe.shots_unit) of a segmentation task."""
    per_class: int = 0
    """Labelled training examples per class of a classification task, and at most as many
    validation examples; 0 takes all of them."""
    draws: int = 1
    """Seeded choices of the k examples; the model and the predictions of the first one are kept."""
    seed: int = 0
    """Seed of the draws, the heads, the batches and the random twin."""
    steps: int = 150
    """Optimiser steps of a segmentation cell, and of classification by attention."""
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
        _check_per_class((self.per_class,))
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
    per_class: tuple[int, ...] = (0,)
    """Labelled training examples per class for the classification tasks, and at most as many
    validation examples; the k of their results. 0 takes all of them, once."""
    clusters: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    """Numbers of clusters for the clustering tasks; the k of their results."""
    draws: int = 3
    """Seeded choices of the k examples, or starts of a clustering."""
    seed: int = 0
    """Seed of the draws, the heads, the batches and the random twins."""
    steps: int = 150
    """Optimiser steps of a segmentation cell, and of classification by attention."""
    adaptation: Adaptation = "frozen"
    """Which weights move: frozen, head or full, as in FinetuneConfig."""
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
        _check_per_class(self.per_class)
        names = [task.name for task in self.tasks]
        if not names or not self.weights or not self.k:
            raise ConfigError("CONFIG-05", "a suite needs at least one of each: weights, tasks, k.")
        if len(set(names)) < len(names) or len(set(self.k)) < len(self.k):
            raise ConfigError(
                "CONFIG-05", f"task names and k must be distinct: {names}, {list(self.k)}."
            )


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a suite runs; nothing here changes a result."""

    ray: str = ""
    """Run the cells on a Ray cluster: its address (host:port or ray://host:port), or `local`, which
    starts one on this machine. All machines must see the same folders."""
    workers: int = 0
    """Cells at a time with --ray; 0 is one a core of the cluster."""
    embeddings: Path | None = None
    """Folder of cached features, which several suites may share; by default OUT/embeddings."""
    embeddings_gb: float = 8.0
    """Size of that folder in GB, beyond which the features used least recently go; 0 keeps none."""
    update_cards: bool = False
    """Write the results with their intervals into the model cards of the weights folders."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.embeddings_gb < 0:
            raise ConfigError("CONFIG-05", "workers and embeddings_gb must be 0 or more.")
        if self.workers and not self.ray:
            raise ConfigError("CONFIG-05", "workers needs --ray ADDRESS.")


def _check_per_class(counts: tuple[int, ...]) -> None:
    if not counts or min(counts) < 0 or len(set(counts)) < len(counts):
        raise ConfigError(
            "CONFIG-05", f"per_class must be distinct numbers of 0 or more, got {list(counts)}."
        )


def _check_counts(**counts: int) -> None:
    wrong = [f"{name} = {count}" for name, count in counts.items() if count < 1]
    if wrong:
        raise ConfigError("CONFIG-05", f"must be 1 or more: {', '.join(wrong)}.")
