"""What a leaderboard asks for, and the card that every submission brings: strict YAML files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from core_mri.config import load_config
from core_mri.errors import ConfigError, LeaderboardError

Kind = Literal["reconstruction", "segmentation"]
METRICS: dict[str, dict[str, tuple[int, str]]] = {
    "reconstruction": {"SSIM": (1, "1"), "PSNR": (1, "dB"), "NMSE": (-1, "1")},
    "segmentation": {"dice": (1, "1"), "nsd": (1, "1"), "hd95": (-1, "mm")},
}
"""Kind -> metric -> 1 where more is better, -1 where less is; and its unit."""
SUFFIXES: dict[str, tuple[str, ...]] = {
    "reconstruction": (".h5", ".hdf5"),
    "segmentation": (".nii.gz", ".nii"),
}
"""Kind -> endings of the files of references and submissions."""
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,62}[A-Za-z0-9.+]|[A-Za-z0-9]")
_MAX_WORDS = 4000


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A task with hidden references."""

    name: str
    """Name in addresses: small letters, digits, - and _, at most 40."""
    title: str
    """Name for readers."""
    description: str
    """What has to be done, from which public data, and under which terms."""
    kind: Kind
    """``reconstruction``: HDF5 files with the dataset `reconstruction`, as fastMRI takes them;
    ``segmentation``: NIfTI masks."""
    metric: str
    """What ranks: SSIM, PSNR or NMSE; dice, nsd or hd95 (mean over structures)."""
    target: str
    """Dataset of the reference files, such as ``reconstruction_esc``; empty for masks."""
    structures: tuple[str, ...]
    """Names of the values 1, 2, ... of masks; empty for reconstructions."""
    patients: dict[str, str]
    """File to patient, where a patient has several; empty when each file is a patient."""
    per_day: int = 2
    """Submissions of one owner that are scored, or refused as copies, in 24 hours."""
    attempts_per_day: int = 20
    """Submissions of one owner of any outcome in 24 hours."""
    near: float = 0.01
    """What counts as a copy. Reconstructions: root of the mean squared difference, once offset and
    scale are taken out, over the standard deviation of the values. Masks: voxels that differ over
    labelled voxels."""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.name):
            raise ConfigError("CONFIG-01", f"name {self.name!r}: must fit {_ID.pattern}.")
        if self.metric not in METRICS[self.kind]:
            allowed = ", ".join(METRICS[self.kind])
            raise ConfigError("CONFIG-01", f"metric {self.metric!r}: must be one of {allowed}.")
        is_masks = self.kind == "segmentation"
        if bool(self.structures) != is_masks or bool(self.target) == is_masks:
            raise ConfigError(
                "CONFIG-01",
                "masks need structures and no target, reconstructions a target and no structures.",
            )
        if len(self.structures) > 200 or len(set(self.structures)) < len(self.structures):
            raise ConfigError("CONFIG-01", "structures: at most 200, each with its own name.")
        if not 1 <= self.per_day <= self.attempts_per_day:
            raise ConfigError("CONFIG-01", "1 <= per_day <= attempts_per_day must hold.")
        if not 0 < self.near < 1:
            raise ConfigError("CONFIG-01", f"near {self.near}: must lie between 0 and 1.")

    @property
    def sign(self) -> int:
        """1 where more of the metric is better, -1 where less is."""
        return METRICS[self.kind][self.metric][0]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What readers have to know of the model behind a submission; every field is demanded."""

    method: str
    """What it is: network, or algorithm."""
    training_data: str
    """What it was trained on, with the number of patients; "none" for a classical method."""
    saw_test_patients: bool
    """Whether any patient of the task was trained on or looked at; True is refused."""
    parameters: int
    """Number of trained parameters; 0 for a classical method."""
    licence: str
    """SPDX expression of model or code; LicenseRef-NAME for another text."""
    limits: str
    """Where it is known, or expected, to fail."""
    reference: str
    """Publication or address of the code; "none" without."""


def load_card(source: Path | Mapping[str, object]) -> Card:
    """A model card from YAML or a mapping.

    Raises:
        LeaderboardError: BOARD-04 when it is missing, incomplete or says what is not allowed.
    """
    from data_registry.governance.licences import licence_terms

    example = f"A card has the keys {', '.join(field.name for field in fields(Card))}."
    try:
        card = load_config(Card, source)
        known = licence_terms(card.licence).known
    except ConfigError as error:
        raise LeaderboardError("BOARD-04", f"model card: {error.message}", fix=example) from None
    words = {name: value for name, value in vars(card).items() if isinstance(value, str)}
    empty = [name for name, value in words.items() if not value.strip()]
    long = [name for name, value in words.items() if len(value) > _MAX_WORDS]
    if empty or long:
        wrong = f"{', '.join(empty or long)} is {'empty' if empty else 'too long'}"
        raise LeaderboardError("BOARD-04", f"model card: {wrong}.", fix=example)
    if card.parameters < 0 or not known:
        raise LeaderboardError(
            "BOARD-04",
            f"model card: {card.parameters} parameters, licence {card.licence!r}; 0 or more and a "
            "known licence are allowed.",
            fix="Name an SPDX licence such as Apache-2.0, or LicenseRef-NAME.",
        )
    if card.saw_test_patients:
        raise LeaderboardError(
            "BOARD-04",
            "model card: the model has seen patients of this task, so its scores say nothing.",
            fix="Train it without them.",
        )
    return card


def check_name(name: str) -> None:
    """See that a submission may be called so: plain letters, so that no two names look alike.

    Raises:
        LeaderboardError: BOARD-08.
    """
    if not _NAME.fullmatch(name):
        raise LeaderboardError(
            "BOARD-08",
            "the name of a submission has 1 to 64 letters, digits, spaces and . _ + -, and begins "
            "with a letter or digit.",
        )
