"""What can be asked of `core-mri finetune` and `core-mri evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from core_mri.errors import ConfigError
from downstream.recipe import Recipe

Adaptation = Literal["frozen", "head", "adapters", "lora", "full"]
Protocol = Literal["volumes", "paper"]
BaselineName = Literal["unet", "nnunetv2", "myopari"]
Level = Literal["slice", "volume", "patient"]
Method = Literal["linear probe", "knn", "attention"]
TARGETS = ("sequence", "region", "source", "vendor", "plane", "contrast")
"""Columns of the registry that may be the class of a volume."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question put to an encoder: which scans, and what is to be told from them."""

    name: str
    """Short name for tables and file names: letters, digits, dash, underscore."""
    kind: Literal["segmentation", "classification", "clustering", "prompting"]
    """segmentation scores masks per patient and structure; classification scores one class per
    slice, volume or patient; clustering scores clusters of frozen features as masks, without
    training; prompting trains a mask decoder and scores its answers to boxes and clicks."""
    where: str = ""
    """SQL condition on the volume columns of the registry, such as "source = 'phantoms' AND region
    = 'abdomen'"; empty takes every image."""
    labels: dict[str, int] = field(default_factory=dict)
    """All but classification: structure name to its value in the label volumes; 0 is background and
    not listed."""
    label_names: tuple[str, ...] = ()
    """All but classification: structures by the names that the registry stores with the label
    volumes, instead of values in `labels`: "liver", "vertebra *", or "*" for all."""
    unite: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """All but classification: structure of this task to the stored names that are it together,
    such as {heart: ["left *", "right *"]}."""
    sequences: tuple[str, ...] = ()
    """Segmentation: sequences that make up one case, in the order in which the model reads them;
    empty takes every image for itself. All lie on the grid of the label volume."""
    several_label_volumes: Literal["error", "unite"] = "error"
    """All but classification: what different label volumes of one image mean; unite takes them for
    parts, such as one file a structure: where they overlap the first structure wins."""
    label_where: str = ""
    """All but classification: SQL condition that picks the label volume where an image has
    several."""
    other_labels: Literal["error", "background"] = "error"
    """All but classification: what a label value outside `labels` means; error names the volume
    and the value."""
    train_labels: dict[str, int] = field(default_factory=dict)
    """Prompting: the structures to train on, where they are not `labels`, which are then the ones
    to test; with other_labels background this leaves a structure out of the training."""
    train_where: str = ""
    """Prompting: condition on the images to train on, where it is not `where`; this leaves an
    anatomy out of the training."""
    tolerances: dict[str, float] = field(default_factory=dict)
    """Segmentation: structure name to the deviation of its surface that the metric nsd forgives, in
    mm (pixels where no spacing is known); 1 for those not named."""
    k: tuple[int, ...] = ()
    """Segmentation, prompting: numbers of labelled examples in place of the suite's; empty takes
    those."""
    test_split: Literal["test", "val"] = "test"
    """Whose patients are scored. val scores validation patients, for choices that must not know the
    test patients; then there are none left to choose a step by, and the last one is kept."""
    optional: bool = False
    """Too few labelled patients leave the cells of the task empty instead of failing them."""
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
        if self.kind != "prompting" and (self.train_labels or self.train_where):
            raise ConfigError(
                "CONFIG-05",
                f"task {self.name}: only a prompting task has train_labels or train_where.",
            )
        self._check_tolerances()
        _check_counts(**{f"task {self.name}: k[{i}]": k for i, k in enumerate(self.k)})
        if self.kind != "classification":
            self._check_labels(self.labels)
            self._check_labels(self.train_labels or self.labels)
        else:
            self._check_target()
        if self.train_labels and self.by_name:
            raise ConfigError(
                "CONFIG-05",
                f"task {self.name}: train_labels are values, and structures are told by name.",
                fix="Give labels with values too, in place of label_names and unite.",
            )
        if self.kind != "segmentation" and (self.sequences or self.tolerances):
            raise ConfigError(
                "CONFIG-05",
                f"task {self.name}: only segmentation takes sequences together, or tolerances.",
            )
        if len({name.lower() for name in self.sequences}) < len(self.sequences):
            raise ConfigError(
                "CONFIG-05", f"task {self.name}: sequences must differ, got {self.sequences}."
            )

    @property
    def by_name(self) -> bool:
        """Whether structures are told by their names; then `labels` is filled in by the data."""
        return bool(self.label_names or self.unite)

    def _check_target(self) -> None:
        if not self.target or self.labels or self.by_name or self.label_where or not self.methods:
            raise ConfigError(
                "CONFIG-05",
                f"task {self.name}: a classification task has a target, methods, and no labels or "
                "label_where.",
                fix="Set target to sequence or region.",
            )
        if self.table is None and self.target not in TARGETS:
            raise ConfigError(
                "CONFIG-05",
                f"task {self.name}: target {self.target!r} is no column of the registry.",
                fix=f"Use {', '.join(TARGETS)}, or give a table that has the column.",
            )

    def _check_tolerances(self) -> None:
        known = not self.by_name or bool(self.labels)
        strange = known and set(self.tolerances) - set(self.labels)
        if strange or any(value < 0 for value in self.tolerances.values()):
            raise ConfigError(
                "CONFIG-05",
                f"task {self.name}: tolerances are numbers of 0 or more for names of labels, "
                f"{sorted(self.labels)}; got {self.tolerances}.",
            )

    def _check_labels(self, labels: dict[str, int]) -> None:
        foreign = self.target or self.table
        if self.by_name and not labels and not foreign:
            return
        values = list(labels.values())
        if not values or min(values) < 1 or len(set(values)) < len(values) or foreign:
            raise ConfigError(
                "CONFIG-05",
                f"task {self.name}: a {self.kind} task has no target or table, and labels with "
                f"distinct values of 1 or more, or label_names; got {labels}.",
            )


def training_task(task: Task) -> Task:
    """The task with the structures to train on in place of those to test."""
    return replace(task, labels=task.train_labels or task.labels, train_labels={}, train_where="")


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
    """Labelled training volumes, slices or patients (recipe.shots_unit) of a segmentation or
    prompting task."""
    per_class: int = 0
    """Labelled training examples per class of a classification task, and at most as many
    validation examples; 0 takes all of them."""
    draws: int = 1
    """Seeded choices of the k examples; the model and the predictions of the first one are kept."""
    seed: int = 0
    """Seed of the draws, the heads, the batches and the random twin."""
    steps: int = 150
    """Optimiser steps of a segmentation or prompting cell, and of classification by attention."""
    adaptation: Adaptation = "frozen"
    """Which weights move: frozen (a decoder on features cached once), head (encoder still, every
    step augmented afresh), adapters, lora, full (everything)."""
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
        _check_per_class((self.per_class,))
        _check_synthetic(self.recipe, (self.task,), ())
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
    """Numbers of labelled training volumes or slices for segmentation and prompting tasks."""
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
    """Optimiser steps of a segmentation or prompting cell, and of classification by attention."""
    adaptation: Adaptation = "frozen"
    """Which weights move: frozen, head, adapters, lora or full, as in FinetuneConfig."""
    protocol: Protocol = "volumes"
    """Segmentation: volumes draws patients and scores whole volumes in mm; paper does as MRI-CORE
    published (`downstream.segmentation.paper`), whose results are not comparable with others."""
    tuning: tuple[float, ...] = (1.0,)
    """Segmentation, prompting: factors on the learning rates. Every contender is trained with each
    of them and tested with the one that is best on its validation patients."""
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
    """Folders of earlier runs; their finished cells count where nothing they depend on differs.
    A run keeps only the cells it computed: name the folders that those runs reused as well."""

    def __post_init__(self) -> None:
        _check_counts(
            draws=self.draws, steps=self.steps, **{f"k[{i}]": k for i, k in enumerate(self.k)}
        )
        if not all(2 <= count <= 256 for count in self.clusters):
            raise ConfigError(
                "CONFIG-05", f"clusters must lie between 2 and 256, got {list(self.clusters)}."
            )
        _check_per_class(self.per_class)
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
                f"protocol paper labels slices, and recipe.shots_unit is {self.recipe.shots_unit}.",
                fix="Set recipe.shots_unit to slices.",
            )
        _check_synthetic(self.recipe, self.tasks, self.baselines)
        if taken := sorted(set(self.weights) & set(self.baselines)):
            raise ConfigError("CONFIG-05", f"weights may not have the name of a baseline: {taken}.")
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


def _check_synthetic(
    recipe: Recipe, tasks: tuple[Task, ...], baselines: tuple[BaselineName, ...]
) -> None:
    if recipe.synthetic_share and (baselines or {task.kind for task in tasks} != {"segmentation"}):
        raise ConfigError(
            "CONFIG-05",
            "recipe.synthetic_share: only segmentation by an encoder trains on generated pairs, no "
            "baseline and no other kind of task.",
        )


def _check_per_class(counts: tuple[int, ...]) -> None:
    if not counts or min(counts) < 0 or len(set(counts)) < len(counts):
        raise ConfigError(
            "CONFIG-05", f"per_class must be distinct numbers of 0 or more, got {list(counts)}."
        )


def _check_counts(**counts: int) -> None:
    wrong = [f"{name} = {count}" for name, count in counts.items() if count < 1]
    if wrong:
        raise ConfigError("CONFIG-05", f"must be 1 or more: {', '.join(wrong)}.")
