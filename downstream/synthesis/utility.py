"""What synthetic pairs are worth: segmentation trained on real, on synthetic, and on both.

The same suite three times, with the same encoder, draws, steps and test patients; only the share of
synthetic slices in a batch differs. Synthetic pairs are those made from the k patients alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from core_mri.metrics.intervals import Interval, bootstrap_statistic
from downstream.config import SuiteConfig
from downstream.evaluation.suite import evaluate
from downstream.synthesis.config import Role

METRIC = "dice"


@dataclass(frozen=True)
class Gain:
    """One contender at one k, trained on something else than real pairs."""

    task: str
    weights: str
    k: int
    trained_on: Role
    dice: Interval
    """Mean over test patients."""
    difference: Interval | None
    """To the same on real pairs, patient by patient; None for those themselves."""
    patients: int


def compare_roles(
    suite: SuiteConfig, out: Path, mixed_share: float
) -> tuple[list[Gain], dict[str, str]]:
    """Run the suite on real, synthetic and both.

    Returns:
        What came out, and the errors of cells that failed, by the folder of their run and name.

    Args:
        suite: Of segmentation tasks; its `out` and `recipe.synthetic_share` are set here.
        out: Folder of the three runs.
        mixed_share: Share of synthetic slices in the third.

    Raises:
        CoreMRIError: As `downstream.evaluate`.
    """
    shares: dict[Role, float] = {"real": 0.0, "synthetic": 1.0, "both": mixed_share}
    by_role = {}
    failed: dict[str, str] = {}
    for role, share in shares.items():
        recipe = replace(suite.recipe, synthetic_share=share)
        folder = evaluate(replace(suite, out=out / role, recipe=recipe))
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        by_role[role] = _by_patient(results["cells"])
        failed |= {f"{role}: {one['cell']}": str(one["error"]) for one in results["failed"]}
    gains = [
        Gain(
            task, weights, k, role,
            _interval(scores, suite.seed),
            None if role == "real" else _difference(scores, by_role["real"][key], suite.seed),
            len(scores),
        )
        for role, cells in by_role.items()
        for key, scores in sorted(cells.items())
        for task, weights, k in (key,)
    ]  # fmt: skip
    return gains, failed


Key = tuple[str, str, int]


def _by_patient(rows: Sequence[Mapping[str, Any]]) -> dict[Key, dict[str, float]]:
    """(task, weights, k) -> patient -> mean Dice over structures and draws."""
    found: dict[Key, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["metric"] == METRIC:
            key = row["task"], row["weights"], row["k"]
            found[key][row["patient"]].append(row["value"])
    return {
        key: {patient: float(np.mean(values)) for patient, values in own.items()}
        for key, own in found.items()
    }


def _interval(scores: dict[str, float], seed: int) -> Interval:
    values = np.array([scores[patient] for patient in sorted(scores)])
    return bootstrap_statistic(lambda c: c @ values / c.sum(1), len(values), seed=seed)


def _difference(scores: dict[str, float], real: dict[str, float], seed: int) -> Interval:
    return _interval({p: scores[p] - real[p] for p in scores.keys() & real.keys()}, seed)
