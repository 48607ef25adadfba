"""What a box alone tells: the ellipse that fills it, beside the answers of a finished run.

python tests/benchmarks/bench_prompts.py RUN, a folder of `core-mri finetune prompting`.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np

from core_mri.config import load_config
from core_mri.metrics import bootstrap_interval, dice
from data_registry.catalogue import Registry
from downstream.config import FinetuneConfig
from downstream.evaluation.cells import prepare
from downstream.prompting.clicks import Mask, box_of
from downstream.segmentation.data import Pairs, read_mask


def ellipse(mask: Mask) -> Mask:
    """The ellipse that touches the four sides of the box of a mask."""
    x0, y0, x1, y1 = box_of(mask)
    y, x = np.indices(mask.shape)
    across, down = (x - (x0 + x1) / 2) / (x1 - x0 + 1), (y - (y0 + y1) / 2) / (y1 - y0 + 1)
    inside: Mask = across**2 + down**2 <= 0.25
    return inside


def main(run: Path) -> None:
    """Print mean Dice per slice over test patients with 95 % intervals, and ratios."""
    config = load_config(FinetuneConfig, run / "config.yaml")
    registry = Registry.open(config.registry)
    pairs = prepare(registry, config.task).data
    assert isinstance(pairs, Pairs)
    # Slices of a patient's structure are averaged, then structures: as the run does.
    own: dict[tuple[str, int], list[float]] = {}
    for pair in pairs.test:
        classes = read_mask(registry, pair, config.task)
        for value in range(1, 1 + len(config.task.labels)):
            targets = [mask for mask in classes == value if mask.any()]
            key = (pair.image.subject_id, value)
            own.setdefault(key, []).extend(dice(mask, ellipse(mask)) for mask in targets)
    by_patient: dict[str, list[float]] = {}
    for (patient, _), values in own.items():
        if values:
            by_patient.setdefault(patient, []).append(float(np.mean(values)))
    found = bootstrap_interval([float(np.mean(v)) for v in by_patient.values()], seed=config.seed)
    print(f"ellipse in the box: {found.mean:.3f} {_between(found.low, found.high)}, n {found.n}")
    for row in json.loads((run / "results.json").read_text())["summary"]:
        if row["metric"] == "dice_2d":
            print(
                f"{row['weights']}, {row['method']}: {row['mean']:.3f} "
                f"{_between(row['ci_low'], row['ci_high'])}, {row['mean'] / found.mean:.2f} of it"
            )


def _between(low: float | None, high: float | None) -> str:
    if low is None or high is None or math.isnan(low):
        return "(-)"
    return f"({low:.3f}-{high:.3f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
