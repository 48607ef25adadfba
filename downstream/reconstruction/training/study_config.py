"""What can be asked of `core-mri evaluate` for networks that reconstruct: who competes, on what."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core_mri.errors import ConfigError
from downstream.reconstruction.training.config import (
    Fitting,
    InnerEncoder,
    Loss,
    Network,
    Simulation,
    Supervision,
    Undersampling,
)

Classical = Literal["zero-filled", "cg-sense", "tv", "wavelet"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A network and how it is trained."""

    network: Network = field(default_factory=Network)
    """What is trained."""
    supervision: Supervision = "supervised"
    """By what."""
    encoder: InnerEncoder = field(default_factory=InnerEncoder)
    """What is inside."""
    loss: Loss = field(default_factory=Loss)
    """Weights of the terms."""
    fitting: Fitting = field(default_factory=Fitting)
    """How the weights move; steps and seeds are those of the study."""
    train_where: str = ""
    """SQL condition on other images to train on; empty takes the study's `where`."""
    labelled: tuple[int, ...] = ()
    """Training patients with references; empty takes the study's numbers."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionStudy:
    """Networks and classical methods on the same simulated scans of the same test patients."""

    registry: Path
    """Folder of the data registry."""
    out: Path
    """Output folder; finished trainings of an earlier start are kept."""
    where: str = ""
    """SQL condition on the volume columns of the registry."""
    test_split: Literal["test", "val"] = "test"
    """val scores validation patients, to choose settings before the test patients are looked at;
    the step that is kept is then the last one."""
    contenders: dict[str, Contender]
    """Name for the tables to what is trained."""
    classical: tuple[Classical, ...] = ("zero-filled", "cg-sense", "tv", "wavelet")
    """What nobody trains; the weights of tv and wavelet are chosen on training patients."""
    tuning: tuple[float, ...] = (0.0015, 0.003, 0.006, 0.012, 0.024)
    """Weights of the penalty to choose from, separately for each acceleration, by PSNR."""
    tuning_slices: int = 12
    """Slices of training patients that choose."""
    labelled: tuple[int, ...] = (2, 0)
    """Numbers of training patients with references; 0: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, order, coils, masks, and which patients are labelled."""
    steps: int = 300
    """Optimiser steps of every training."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs of names, contenders or classical: the first minus the second is tested."""
    simulation: Simulation = field(default_factory=Simulation)
    """Of the images."""
    undersampling: Undersampling = field(default_factory=Undersampling)
    """Trained on all of it, tested at each acceleration."""
    test_every: int = 1
    """Score every so manieth slice of the test patients only."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    allow_overlap: str = ""
    """Reason why test patients may have been pretraining patients of an encoder."""
    reuse: tuple[Path, ...] = ()
    """Folders of other studies whose finished cells count where their settings are the same, so
    that seeds or contenders may run on several machines. A study keeps only the cells it computed:
    name the folders that those studies reused as well."""

    def __post_init__(self) -> None:
        if not self.contenders or not self.seeds or not self.labelled or not self.tuning:
            raise ConfigError(
                "CONFIG-05",
                "a study needs at least one of each: contenders, seeds, labelled, tuning.",
            )
        if min(self.steps, self.test_every, self.tuning_slices) < 1 or min(self.labelled) < 0:
            raise ConfigError(
                "CONFIG-05",
                f"steps {self.steps}, test_every {self.test_every}, tuning_slices "
                f"{self.tuning_slices} must be 1 or more, labelled {self.labelled} 0 or more.",
            )
        known = {*self.contenders, *self.classical}
        if unknown := sorted({name for pair in self.compare for name in pair} - known):
            raise ConfigError(
                "CONFIG-05",
                f"compare names {', '.join(unknown)}, and there are {', '.join(sorted(known))}.",
            )
        if both := sorted(set(self.contenders) & set(self.classical)):
            raise ConfigError("CONFIG-05", f"contenders with the name of a classical one: {both}.")
