"""What is watched while a run goes on, and where the alarms lie.

The limits were fixed from the seven toy runs of the project's research notes (two healthy, five
collapsed in five ways) before the study in ``reports/sentinel`` was run, which used other seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core_mri.errors import ConfigError

Level = Literal["warn", "snapshot", "stop"]
LEVELS: tuple[Level, ...] = ("warn", "snapshot", "stop")


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """Figures of health and limits beyond which they alarm."""

    action: Level = "stop"
    """The most that an alarm may do: ``warn`` in the log, ``snapshot`` (also keep a checkpoint and
    pictures), ``stop`` (also end the run, when the alarm lasts twice its patience)."""
    every: int = 50
    """Steps between figures that cost more: spectrum, norms of gradients, duplicates."""
    queue: int = 4096
    """Class tokens, the newest, over which the spectrum is taken."""
    probe_every: int = 2500
    """Steps between probes on region, sequence and plane, and looks at patches; 0: none."""
    probe_slices: int = 512
    """Slices at most, on each side, of these probes."""
    patience_steps: int = 40
    """Steps beyond a limit before an alarm ..."""
    patience_share: float = 0.01
    """... or this part of the run, when that is more."""
    information: float = 0.05
    """Smallest mutual information of a head's targets, as a part of min(ln K, ln rows)."""
    kl: float = 0.01
    """Smallest KL(teacher || student) of a head, nats."""
    prototype_use: float = 0.05
    """Smallest entropy of the mean target of a head, as a part of min(ln K, ln rows)."""
    mean_cosine: float = 0.98
    """Largest mean cosine between class tokens of different slices."""
    rank: float = 4.0
    """Smallest effective rank (RankMe) of the centered class tokens."""
    patch_cosine: float = 0.98
    """Largest mean cosine between patches of one slice."""
    target_spread: float = 0.05
    """Smallest spread of the teacher's targets over slices, which is at most 1 (I-JEPA)."""
    duplicates: float = 0.05
    """Largest part of a batch that repeats another slice of it."""
    skipped: float = 0.01
    """Largest part of the last 1,000 steps skipped because they were not finite."""
    anchor_drop: float = 0.05
    """Largest fall of the nearest-neighbor accuracy below that of the initial weights."""

    def __post_init__(self) -> None:
        for name in ("every", "queue", "patience_steps"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError("CONFIG-05", f"health.{name} must be positive, got {value}.")
        for name in ("probe_every", "probe_slices"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError("CONFIG-05", f"health.{name} must not be negative, got {value}.")
        for name in ("patience_share", "information", "prototype_use", "target_spread",
                     "duplicates", "skipped", "anchor_drop"):  # fmt: skip
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ConfigError("CONFIG-05", f"health.{name} must lie in [0, 1], got {value}.")
