"""The configuration of a pretraining run; defaults follow DINOv2 (arXiv 2304.07193)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core_mri.models.registry import MODELS
from pretrain.config_masked import IjepaConfig, MaeConfig
from pretrain.config_views import ViewsConfig, require
from pretrain.health_config import HealthConfig

OBJECTIVES = {
    "distillation": "DINO + iBOT + KoLeo",
    "mae": "masked autoencoder",
    "ijepa": "I-JEPA",
}
"""What the values of ``objective.name`` are called."""
CONFIGS = Path(__file__).parent / "configs"
"""Where the packaged configurations lie."""
_LARGE = 1024
"""Width of ViT-L."""


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Which patches of the global views the student does not see (iBOT, arXiv 2111.07832)."""

    kind: Literal["block", "inverse"] = "block"
    """``block`` hides blocks; ``inverse`` shows one block and hides what is around it, which makes
    sense for ratios from 0.5 on (CAPI, arXiv 2502.08769)."""
    probability: float = 0.5
    """Probability that a global view is masked at all."""
    ratio: tuple[float, float] = (0.1, 0.5)
    """Masked part of the patches of a masked view, lowest and highest."""
    min_block: int = 4
    """Smallest block, patches; what blocks leave over is filled with single patches."""

    def __post_init__(self) -> None:
        low, high = self.ratio
        require(0 < low <= high < 1, f"masking.ratio must be 0 < low <= high < 1, got {low, high}.")
        require(
            0 <= self.probability <= 1,
            f"masking.probability must lie in [0, 1], got {self.probability}.",
        )
        require(self.min_block >= 1, f"masking.min_block must be positive, got {self.min_block}.")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Losses, their weights and the heads they need."""

    name: Literal["distillation", "mae", "ijepa"] = "distillation"
    """What is minimized: ``distillation`` is DINO, iBOT and KoLeo with a moving teacher, and what
    the other fields here are about; ``mae`` and ``ijepa`` have sections of their own."""
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
        require(
            self.gram_refresh >= 1,
            f"objective.gram_refresh must be positive, got {self.gram_refresh}.",
        )
        for name in (
            *("dino_weight", "ibot_weight", "koleo_weight"),
            *("gram_weight", "gram_start", "gram_max_refreshes"),
        ):
            value = getattr(self, name)
            require(value >= 0, f"objective.{name} must not be negative, got {value}.")
        for name in ("koleo_group", "num_prototypes"):
            value = getattr(self, name)
            require(value >= 2, f"objective.{name} must be at least 2, got {value}.")
        require(
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
            require(value > 0, f"optimizer.{name} must be positive, got {value}.")
        require(
            self.patch_embed_lr >= 0 and self.layer_decay <= 1,
            "optimizer.layer_decay lies in (0, 1] and patch_embed_lr is not negative, got "
            f"{self.layer_decay} and {self.patch_embed_lr}.",
        )
        require(
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
    micro_batch: int = 0
    """Slices that a worker holds at once, a multiple of ``objective.koleo_group``: its share of the
    batch is computed in parts, to the same gradients. 0 computes it at once."""
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
    mae: MaeConfig = field(default_factory=MaeConfig)
    """The masked autoencoder, with ``objective.name: mae``."""
    ijepa: IjepaConfig = field(default_factory=IjepaConfig)
    """Joint-embedding prediction, with ``objective.name: ijepa``."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedules."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """Figures of health and their alarms."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    checkpoints: str = ""
    """Where checkpoints go: a folder that all workers see, or a URL such as ``s3://bucket/name``
    (extra ``store``); empty is the run folder."""
    probe_slices: int = 1024
    """Slices at most, on each side, for the nearest-neighbor probe at the end; 0 leaves it out."""
    statistics_slices: int = 10_000
    """Training slices at most that are embedded at the end for ``weights/statistics.safetensors``,
    which tells users of the weights what they saw; 0 leaves it out."""
    loader_workers: int = 0
    """Processes that read slices, for each worker; 0 reads in the worker itself."""
    compile: bool = False
    """Compile the blocks of the encoder (`torch.compile`); the first steps take a minute longer."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto`` takes bfloat16 autocast on CUDA devices that have it, else float32."""
    sharding: Literal["auto", "none", "fsdp"] = "auto"
    """Whether workers divide weights, gradients, optimizer and teacher among them (FSDP2) instead
    of holding all of it each; ``auto`` does so from ViT-L on. One worker never does."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which workers send each other gradients; ``bfloat16`` halves what goes over the
    network and rounds each to three digits."""

    def __post_init__(self) -> None:
        require(
            self.objective.gram_weight == 0 or self.objective.gram_start < self.steps,
            f"objective.gram_start is {self.objective.gram_start}, but the run has {self.steps} "
            "steps.",
        )
        for name in ("steps", "batch_size", "checkpoint_every"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be positive, got {value}.")
        group = self.objective.koleo_group
        require(
            self.micro_batch >= 0 and self.micro_batch % group == 0,
            f"micro_batch must be 0 or a multiple of objective.koleo_group {group}, got "
            f"{self.micro_batch}.",
            fix=f"Try {max(self.micro_batch // group, 1) * group}.",
        )
        require(
            self.model in MODELS,
            f"no model {self.model!r}; choose one of {', '.join(sorted(MODELS))}.",
        )
        require(0 <= self.balance <= 1, f"balance must lie in [0, 1], got {self.balance}.")
        require(
            self.views.num_global == 2 or self.objective.name != "distillation",
            "distillation needs views.num_global: 2, as it compares views of a slice.",
        )
        require(
            self.views.num_global == 1 or self.objective.name != "ijepa",
            "ijepa needs views.num_global: 1, as it compares parts of one view.",
        )
        self._check_sides("views", self.views.global_size, self.views.local_size)
        for number, stage in enumerate(self.stages):
            self._check_sides(f"stages[{number}]", stage.global_size, stage.local_size)
            require(
                stage.steps >= 1 and stage.batch_size >= 0,
                f"stages[{number}]: steps must be positive and batch_size not negative, got "
                f"{stage.steps} and {stage.batch_size}.",
            )
        later = sum(stage.steps for stage in self.stages)
        require(
            later < self.steps,
            f"the stages have {later} steps, which leaves none of {self.steps} for the first part.",
        )
        require(
            bool(self.start) or self.start_freeze_steps == 0,
            f"start_freeze_steps is {self.start_freeze_steps}, but `start` names no weights.",
            fix="Random weights need no frozen encoder: set it to 0.",
        )
        for name, steps in (
            ("optimizer.warmup_steps", self.optimizer.warmup_steps),
            ("objective.teacher_temperature_warmup", self.objective.teacher_temperature_warmup),
        ):
            require(
                0 <= steps <= self.steps,
                f"{name} is {steps}, but the run has {self.steps} steps.",
                fix=f"Try {self.steps // 10}.",
            )

    def sharded(self, num_workers: int) -> bool:
        """Whether so many workers divide the networks among them."""
        if num_workers == 1 or self.sharding == "none":
            return False
        return self.sharding == "fsdp" or MODELS[self.model].embed_dim >= _LARGE

    def _check_sides(self, where: str, global_size: int, local_size: int) -> None:
        patch = MODELS[self.model].patch_size
        for name, side in (("global_size", global_size), ("local_size", local_size)):
            nearest = max(2, round(side / patch)) * patch
            require(
                side % patch == 0 and side >= 2 * patch,
                f"{where}.{name} must be a multiple of the patch size {patch} of {self.model}, at "
                f"least two patches, got {side}.",
                fix=f"Try {nearest}.",
            )
