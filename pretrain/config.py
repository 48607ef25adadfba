"""The configuration of a pretraining run; defaults follow DINOv2 (arXiv 2304.07193)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core_mri.errors import ConfigError
from core_mri.models.registry import MODELS
from pretrain.health_config import HealthConfig

_PROBABILITIES = ("intensity_probability", "blur_probability", "noise_probability")

CONFIGS = Path(__file__).parent / "configs"
"""Where the packaged configurations lie."""


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Crops of a slice and how their intensities are changed."""

    global_size: int = 224
    """Side of the two global views, px; a multiple of the patch size."""
    global_scale: tuple[float, float] = (0.32, 1.0)
    """Area of a global crop as a fraction of the slice, lowest and highest."""
    local_size: int = 96
    """Side of a local view, px; a multiple of the patch size."""
    local_scale: tuple[float, float] = (0.05, 0.32)
    """Area of a local crop as a fraction of the slice, lowest and highest."""
    num_local: int = 8
    """Local views of a slice; 0 trains on the global views alone."""
    aspect: tuple[float, float] = (0.75, 1.3333)
    """Width / height of a crop, lowest and highest, drawn log-uniformly."""
    flip_rows: float = 0.0
    """Probability of an upside-down view."""
    flip_columns: float = 0.0
    """Probability of a mirrored view; 0 where left and right mean something."""
    intensity_probability: float = 0.8
    """Probability that gamma, contrast and brightness are changed."""
    gamma: tuple[float, float] = (0.5, 2.0)
    """Exponent on [0, 1] intensities, drawn log-uniformly."""
    contrast: float = 0.2
    """Largest relative change of the contrast about the mean of the view."""
    brightness: float = 0.1
    """Largest shift of the intensities."""
    blur_probability: float = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur, px of the view."""
    noise_probability: float = 0.5
    """Probability of Rician noise."""
    noise_sigma: tuple[float, float] = (0.0, 0.05)
    """Standard deviation of the complex noise, on the [0, 1] scale."""

    def __post_init__(self) -> None:
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            _require(
                0 < low <= high <= 1, f"views.{name} must be 0 < low <= high <= 1, got {low, high}."
            )
        for name in ("aspect", "gamma", "blur_sigma_px"):
            low, high = getattr(self, name)
            _require(0 < low <= high, f"views.{name} must be 0 < low <= high, got {low, high}.")
        low, high = self.noise_sigma
        _require(0 <= low <= high, f"views.noise_sigma must be 0 <= low <= high, got {low, high}.")
        for name in ("flip_rows", "flip_columns", *_PROBABILITIES):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"views.{name} is a probability, got {value}.")
        _require(
            self.num_local >= 0, f"views.num_local must not be negative, got {self.num_local}."
        )


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Which patches of the global views the student does not see (iBOT, arXiv 2111.07832)."""

    probability: float = 0.5
    """Probability that a global view is masked at all."""
    ratio: tuple[float, float] = (0.1, 0.5)
    """Masked part of the patches of a masked view, lowest and highest."""
    min_block: int = 4
    """Smallest block, patches; what blocks leave over is filled with single patches."""

    def __post_init__(self) -> None:
        low, high = self.ratio
        _require(
            0 < low <= high < 1, f"masking.ratio must be 0 < low <= high < 1, got {low, high}."
        )
        _require(
            0 <= self.probability <= 1,
            f"masking.probability must lie in [0, 1], got {self.probability}.",
        )
        _require(self.min_block >= 1, f"masking.min_block must be positive, got {self.min_block}.")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Losses, their weights and the heads they need."""

    name: Literal["distillation"] = "distillation"
    """What is minimized: ``distillation`` is DINO, iBOT and KoLeo with a moving teacher."""
    dino_weight: float = 1.0
    """Weight of the loss between class tokens of views."""
    ibot_weight: float = 1.0
    """Weight of the loss on masked patches."""
    koleo_weight: float = 0.1
    """Weight of the loss that spreads class tokens; it grows linearly from 0 over the warm-up."""
    koleo_group: int = 8
    """Slices among which KoLeo seeks nearest neighbors; divides the batch of every worker."""
    num_prototypes: int = 65536
    """K, outputs of each projection head."""
    head_hidden: int = 2048
    """Width of the hidden layers of a head."""
    head_bottleneck: int = 256
    """Width before the prototypes."""
    student_temperature: float = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """Temperature of the teacher at the start and after its warm-up."""
    teacher_temperature_warmup: int = 37500
    """Steps in which the teacher's temperature grows linearly."""
    centering: Literal["sinkhorn", "softmax", "none"] = "sinkhorn"
    """What keeps the teacher from collapse: Sinkhorn-Knopp, or a softmax with a moving center;
    ``none`` collapses, which shows what the alarms do."""
    sinkhorn_iterations: int = 3
    """Iterations of Sinkhorn-Knopp."""
    center_momentum: float = 0.9
    """Momentum of the moving center (``centering: softmax``)."""
    gram_weight: float = 0.0
    """Weight of the loss that holds similarities between patches (DINOv3: 2); 0 leaves it out."""
    gram_start: int = 0
    """With `gram_weight`: step from which on it counts; the teacher before it is the anchor."""
    gram_refresh: int = 10000
    """With `gram_weight`: steps from one anchor to the next."""
    gram_max_refreshes: int = 3
    """With `gram_weight`: new anchors at most, after the first one."""

    def __post_init__(self) -> None:
        _require(
            self.gram_refresh >= 1,
            f"objective.gram_refresh must be positive, got {self.gram_refresh}.",
        )
        for name in (
            *("dino_weight", "ibot_weight", "koleo_weight"),
            *("gram_weight", "gram_start", "gram_max_refreshes"),
        ):
            value = getattr(self, name)
            _require(value >= 0, f"objective.{name} must not be negative, got {value}.")
        for name in ("koleo_group", "num_prototypes"):
            value = getattr(self, name)
            _require(value >= 2, f"objective.{name} must be at least 2, got {value}.")
        _require(
            self.student_temperature > 0 and min(self.teacher_temperature) > 0,
            f"temperatures must be positive, got student {self.student_temperature} and teacher "
            f"{self.teacher_temperature}.",
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and the schedules; every schedule is one explicit array over the steps."""

    learning_rate: float = 1e-3
    """Highest learning rate, for the batch as it is (DINOv2: 4e-3 * sqrt(batch_size / 1024))."""
    final_learning_rate: float = 1e-6
    """Learning rate at the last step; equal to `learning_rate` it stays constant (DINOv3)."""
    warmup_steps: int = 12500
    """Steps of linear growth from 0."""
    weight_decay: tuple[float, float] = (0.04, 0.4)
    """Weight decay at the first and the last step (half a cosine); none on biases and norms."""
    teacher_momentum: tuple[float, float] = (0.992, 1.0)
    """Momentum of the teacher at the first and the last step (half a cosine)."""
    layer_decay: float = 0.9
    """Factor of the learning rate from each block of the encoder to the one before; 1 for none."""
    patch_embed_lr: float = 0.2
    """Further factor of the learning rate of the patch embedding."""
    clip_norm: float = 3.0
    """Largest norm of the whole gradient."""
    freeze_prototypes_steps: int = 1250
    """Steps at the start in which the prototypes stay as they are."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "layer_decay", "clip_norm"):
            value = getattr(self, name)
            _require(value > 0, f"optimizer.{name} must be positive, got {value}.")
        _require(
            self.patch_embed_lr >= 0 and self.layer_decay <= 1,
            "optimizer.layer_decay lies in (0, 1] and patch_embed_lr is not negative, got "
            f"{self.layer_decay} and {self.patch_embed_lr}.",
        )
        _require(
            all(0 <= m <= 1 for m in self.teacher_momentum),
            f"optimizer.teacher_momentum must lie in [0, 1], got {self.teacher_momentum}.",
        )


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A later part of a run with other sizes, such as its last tenth at 448 px."""

    steps: int
    """Steps of this stage."""
    global_size: int
    """Side of the two global views, px; position tables are resampled to it."""
    local_size: int
    """Side of a local view, px."""
    batch_size: int = 0
    """Slices of a step over all workers; 0 leaves it as it is."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pretraining run."""

    registry: Path
    """Folder of the registry whose training slices are used; test patients never are."""
    out: Path
    """Run folder: log, metrics, checkpoints, weights, report."""
    seed: int = 0
    """Seed of weights, order of the slices, views and masks."""
    steps: int = 125000
    """Optimizer steps."""
    batch_size: int = 1024
    """Slices of a step, over all workers."""
    model: str = "vit_base_patch16"
    """Encoder; `core_mri.list_models()` names them."""
    drop_path: float = 0.3
    """Stochastic depth of the student."""
    layer_scale: float = 1e-5
    """Initial LayerScale of the encoder; 0 leaves it out, which short runs need."""
    num_registers: int = 0
    """Register tokens of the encoder."""
    start: str = ""
    """What the encoder starts from: anything that `core_mri.load_model` takes and that holds a
    plain ViT of this size, registers and LayerScale; empty for random weights. Take a learning rate
    of at most 2e-4 * sqrt(batch_size / 1024)."""
    start_freeze_steps: int = 0
    """With `start`: steps at most in which only the heads learn; fewer when the loss levels off."""
    stages: tuple[StageConfig, ...] = ()
    """Stages at the end of the run, in order; what they leave of `steps` goes as `views` says."""
    where: str = ""
    """SQL condition on the volumes of the registry, such as ``region = 'brain'``; empty for all."""
    cohort: str = ""
    """Frozen cohort (``core-mri data query``) of which the volumes must be; empty for all."""
    exclude_noncommercial: bool = False
    """Leave out sources whose licence does not permit commercial use in so many words."""
    balance: float = 0.5
    """0: volumes count alike; 1: regions x sequences x planes do; a stratum of n volumes gets a
    part of the samples proportional to n^(1 - balance)."""
    test_sets: tuple[Path, ...] = ()
    """Registries, whose test split counts, and deny lists (`core-mri data dedupe --deny-list`):
    patients of tasks that must not be pretrained on, besides the test split of `registry`."""
    allow_overlap: str = ""
    """Reason why patients of these test sets may be pretrained on; the model card tells it."""
    min_foreground: float = 0.02
    """Slices with a smaller part of foreground are left out."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Crops and augmentation."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """Masked patches."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Losses and heads."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedules."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """Figures of health and their alarms."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    probe_slices: int = 1024
    """Slices at most, on each side, for the nearest-neighbor probe at the end; 0 leaves it out."""
    loader_workers: int = 0
    """Processes that read slices, for each worker; 0 reads in the worker itself."""
    compile: bool = False
    """Compile the blocks of the encoder (`torch.compile`); the first steps take a minute longer."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto`` takes bfloat16 autocast on CUDA devices that have it, else float32."""

    def __post_init__(self) -> None:
        _require(
            self.objective.gram_weight == 0 or self.objective.gram_start < self.steps,
            f"objective.gram_start is {self.objective.gram_start}, but the run has {self.steps} "
            "steps.",
        )
        for name in ("steps", "batch_size", "checkpoint_every"):
            value = getattr(self, name)
            _require(value >= 1, f"{name} must be positive, got {value}.")
        _require(
            self.model in MODELS,
            f"no model {self.model!r}; choose one of {', '.join(sorted(MODELS))}.",
        )
        _require(0 <= self.balance <= 1, f"balance must lie in [0, 1], got {self.balance}.")
        self._check_sides("views", self.views.global_size, self.views.local_size)
        for number, stage in enumerate(self.stages):
            self._check_sides(f"stages[{number}]", stage.global_size, stage.local_size)
            _require(
                stage.steps >= 1 and stage.batch_size >= 0,
                f"stages[{number}]: steps must be positive and batch_size not negative, got "
                f"{stage.steps} and {stage.batch_size}.",
            )
        later = sum(stage.steps for stage in self.stages)
        _require(
            later < self.steps,
            f"the stages have {later} steps, which leaves none of {self.steps} for the first part.",
        )
        _require(
            bool(self.start) or self.start_freeze_steps == 0,
            f"start_freeze_steps is {self.start_freeze_steps}, but `start` names no weights.",
            fix="Random weights need no frozen encoder: set it to 0.",
        )
        for name, steps in (
            ("optimizer.warmup_steps", self.optimizer.warmup_steps),
            ("objective.teacher_temperature_warmup", self.objective.teacher_temperature_warmup),
        ):
            _require(
                0 <= steps <= self.steps,
                f"{name} is {steps}, but the run has {self.steps} steps.",
                fix=f"Try {self.steps // 10}.",
            )

    def _check_sides(self, where: str, global_size: int, local_size: int) -> None:
        patch = MODELS[self.model].patch_size
        for name, side in (("global_size", global_size), ("local_size", local_size)):
            nearest = max(2, round(side / patch)) * patch
            _require(
                side % patch == 0 and side >= 2 * patch,
                f"{where}.{name} must be a multiple of the patch size {patch} of {self.model}, at "
                f"least two patches, got {side}.",
                fix=f"Try {nearest}.",
            )


def _require(condition: bool, message: str, *, fix: str = "") -> None:
    if not condition:
        raise ConfigError("CONFIG-05", message, fix=fix)
