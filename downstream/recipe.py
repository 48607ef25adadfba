"""How a model is fitted to a task with a few labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core_mri.errors import ConfigError

DecoderName = Literal["linear", "light", "pyramid", "sam"]
ShotsUnit = Literal["volumes", "slices", "patients"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is fitted; the pretrained encoder and its random twin always share it.

    Prompting has a decoder and a loss of its own and takes whole single slices: of the fields from
    `decoder` to `consistency` it reads `patience` only.
    """

    image_size: int = 224
    """Side in pixels of the slices given to the encoder, a multiple of its patch size; scores are
    always taken on the stored grid."""
    shots_unit: ShotsUnit = "volumes"
    """What the k labelled examples of a segmentation or prompting task are; a patient is one with
    all labelled volumes, such as the pictures of a heart that are stored one by one."""
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
    """Peak learning rate of the encoder's own weights (adaptation full)."""
    layer_decay: float = 0.75
    """Adaptation full: factor on the learning rate from each block to the one before it."""
    adapter_learning_rate: float = 1e-3
    """Peak learning rate of adapters and LoRA."""
    adapter_ratio: float = 0.25
    """Adaptation adapters: width of an adapter over that of a token."""
    lora_rank: int = 4
    """Adaptation lora: rank of the changes."""
    lora_alpha: float = 4.0
    """Adaptation lora: changes are scaled by lora_alpha / lora_rank."""
    weight_decay: float = 0.05
    """AdamW weight decay."""
    warmup_fraction: float = 0.05
    """Share of the steps spent raising the learning rate from 0."""
    num_levels: int = 4
    """Depths of the encoder that feed the segmentation head or the neck, spread evenly."""
    head_width: int = 32
    """Channels of the segmentation head at patch resolution; prompting: of the embedding that the
    mask decoder reads, a multiple of 16 (256 in SAM)."""
    prompt_rounds: int = 4
    """Prompting: answers per training step, the one to the first prompt and those to corrections
    of it."""
    decoder: DecoderName = "light"
    """What turns tokens into masks: linear; light (convolutions from patches to pixels); pyramid (a
    U-Net with a convolutional stem, the encoder at its bottom); sam (SAM's mask decoder without
    prompts)."""
    loss: Literal["dice_ce", "dice_focal"] = "dice_ce"
    """Dice with cross-entropy, or with focal loss."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of training; auto takes bfloat16 (autocast) on CUDA devices that have it."""
    ema: float = 0.0
    """Momentum of averaged weights, which are then validated and kept; 0: no averaging."""
    patience: int = 0
    """Looks at the validation patients without a gain after which training stops; 0: never."""
    augmentation: Literal["mild", "strong"] = "mild"
    """How far slices are moved and changed while training; strong bends them and adds noise."""
    mirror: bool = False
    """Mirror slices at random while training, and average over both at the end; refused where a
    structure's name has left or right in it."""
    scales: tuple[float, ...] = (1.0,)
    """Whole volumes: average the answers at these sizes of a slice."""
    pixel_mm: float = 0.0
    """In-plane pixels the encoder gets, mm; larger slices are cut into overlapping windows of
    image_size. 0 resizes every slice whole."""
    overlap: float = 0.25
    """With pixel_mm: share of a window that the next one covers again."""
    neighbours: int = 0
    """Slices on either side whose features the decoder sees too."""
    fusion: Literal["concatenate", "mean"] = "concatenate"
    """How the decoder joins neighbours and sequences: side by side, or a learned mean."""
    consistency: Literal["none", "validated"] = "none"
    """validated: smooth across slices and remove islands as far as it helps on validation
    volumes."""
    augmented_copies: int = 2
    """Adaptation frozen: randomly changed copies of each training slice kept beside the original,
    since cached features cannot be augmented afresh at every step. 0 adds none."""
    cache_gb: float = 2.0
    """Memory in GB for the features of a cell's examples; beyond it they are recomputed."""
    synthetic_share: float = 0.0
    """Segmentation: share of a batch that are slices of generated pairs of the registry, made from
    none but the k patients of the draw; 1 trains on those alone, 0 never."""
    regions: int = 0
    """Prompting: slices of training scans, labelled or not, whose regions of even brightness are
    structures too, beside the labelled slices; fewer where there are not as many."""
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
            "layer_decay": self.layer_decay,
            "adapter_learning_rate": self.adapter_learning_rate,
            "adapter_ratio": self.adapter_ratio,
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "num_levels": self.num_levels,
            "head_width": self.head_width,
            "prompt_rounds": self.prompt_rounds,
            "slices_per_example": self.slices_per_example,
        }
        wrong = [f"recipe.{name} = {value}" for name, value in positive.items() if value <= 0]
        if wrong:
            raise ConfigError("CONFIG-05", f"must be positive: {', '.join(wrong)}.")
        not_negative = {
            "num_validation": self.num_validation,
            "augmented_copies": self.augmented_copies,
            "weight_decay": self.weight_decay,
            "patience": self.patience,
            "pixel_mm": self.pixel_mm,
            "neighbours": self.neighbours,
            "regions": self.regions,
        }
        wrong = [f"recipe.{name} = {value}" for name, value in not_negative.items() if value < 0]
        if wrong:
            raise ConfigError("CONFIG-05", f"must be 0 or more: {', '.join(wrong)}.")
        shares = {
            "warmup_fraction": self.warmup_fraction,
            "ema": self.ema,
            "overlap": self.overlap,
        }
        wrong = [f"recipe.{name} = {value}" for name, value in shares.items() if not 0 <= value < 1]
        if wrong:
            raise ConfigError("CONFIG-05", f"must lie in [0, 1): {', '.join(wrong)}.")
        if not 0 <= self.synthetic_share <= 1:
            raise ConfigError(
                "CONFIG-05",
                f"recipe.synthetic_share must lie in [0, 1], got {self.synthetic_share}.",
            )
        if self.synthetic_share and self.shots_unit == "slices":
            raise ConfigError(
                "CONFIG-05",
                "recipe.synthetic_share: generated pairs are made from whole label maps, and "
                "a draw of slices may see a few slices alone.",
                fix="Set recipe.shots_unit to volumes or patients.",
            )
        if not self.scales or min(self.scales) <= 0:
            raise ConfigError("CONFIG-05", f"recipe.scales must be positive, got {self.scales}.")
