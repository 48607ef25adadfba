"""What is served: classical solvers and weights, by names that show no path of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from core_mri.errors import ConfigError, WeightsError
from downstream.reconstruction.config import Source

Role = Literal["reconstruct", "segment", "prompt"]
SOLVERS = get_args(Source)
"""Sources that need no weights."""


@dataclass(frozen=True)
class Served:
    """A source that jobs may name.

    Args:
        name: For users.
        source: For `core_mri.load_model` or `core-mri reconstruct`.
        role: ``reconstruct`` takes raw data, ``segment`` names structures of an image, ``prompt``
            answers boxes and clicks on one.
        labels: Structures by value, of ``segment``.
        sha256: Of the weights; empty for a solver.
    """

    name: str
    source: str
    role: Role
    labels: dict[int, str] = field(default_factory=dict)
    sha256: str = ""


def is_solver(source: str) -> bool:
    """Whether a source is a classical solver, which needs no weights."""
    return source in SOLVERS


def solver(source: str) -> Served:
    """A classical solver."""
    return Served(source, source, "reconstruct")


def describe(source: str, device: str) -> Served:
    """Load weights once and say what they do.

    Raises:
        WeightsError: What `core_mri.load_model` raises, WEIGHTS-02 for weights of another task.
    """
    from core_mri.models.promptable import PromptableSegmenter
    from core_mri.models.reconstruction import Reconstructor
    from core_mri.models.segmenter import Segmenter
    from core_mri.weights import load_model
    from downstream.reconstruction.network import weights_hash

    model = load_model(source, device=device)
    name = name_of(source)
    digest = weights_hash(source)
    if isinstance(model, Reconstructor):
        return Served(name, source, "reconstruct", {}, digest)
    if isinstance(model, PromptableSegmenter):
        return Served(name, source, "prompt", {}, digest)
    if isinstance(model, Segmenter) and len(model.sequences) < 2:
        return Served(name, source, "segment", dict(model.labels), digest)
    raise WeightsError(
        "WEIGHTS-02",
        f"{source}: {type(model).__name__} neither reconstructs nor segments single scans.",
        fix="Serve a reconstruction network, a segmenter, or weights with a mask decoder.",
    )


def find(sources: Sequence[Served], name: str, role: Role) -> Served | None:
    """The source of a name, or without a name the first of the role."""
    fitting = [served for served in sources if served.role == role]
    return next((served for served in fitting if name in ("", served.name)), None)


def reconstructing(sources: Sequence[Served]) -> tuple[Served, ...]:
    """Those that take raw data.

    Raises:
        ConfigError: CONFIG-05 when none does.
    """
    found = tuple(served for served in sources if served.role == "reconstruct")
    if not found:
        names = ", ".join(served.name for served in sources)
        raise ConfigError(
            "CONFIG-05", f"SOURCE {names}: reconstructs no raw data, which MRD streams bring.",
            fix="Give wavelet, or weights of a reconstruction network.",
        )  # fmt: skip
    return found


def check_names(sources: Sequence[Served]) -> None:
    """Refuse two sources of one name.

    Raises:
        ConfigError: CONFIG-05.
    """
    names = [served.name for served in sources]
    if len(set(names)) < len(names):
        raise ConfigError(
            "CONFIG-05", f"SOURCE: two of them would be called the same: {', '.join(names)}."
        )


def name_of(source: str) -> str:
    """What weights are called: the name of their folder or file, with the family in front."""
    family, _, file = source.rpartition(":")
    stem = Path(file).resolve().name
    if stem == "weights":  # of a run folder
        stem = Path(file).resolve().parent.name
    return f"{family}:{stem}" if family else stem
