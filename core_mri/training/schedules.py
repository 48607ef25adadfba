"""Schedules as explicit arrays, one value per step, so that they can be saved and plotted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError


def warmup_cosine(
    start: float, peak: float, end: float, warmup_steps: int, total_steps: int
) -> npt.NDArray[np.float64]:
    """Linear from `start` to `peak`, then half a cosine to `end` (SGDR, arXiv 1608.03983).

    ``v(t) = start + (peak - start) * t / W`` for t < W, then
    ``v(t) = end + (peak - end) * (1 + cos(pi * (t - W) / (T - W - 1))) / 2``: the first value after
    the warm-up is `peak`, the last one is `end`.

    Args:
        start: Value at step 0 when there is a warm-up.
        peak: Value after the warm-up.
        end: Value at the last step.
        warmup_steps: W >= 0.
        total_steps: T >= 1.

    Returns:
        Float64 array [total_steps].

    Raises:
        ConfigError: CONFIG-05 when the warm-up is longer than the run.
    """
    if not 0 <= warmup_steps <= total_steps or total_steps < 1:
        raise ConfigError(
            "CONFIG-05",
            f"warm-up of {warmup_steps} steps does not fit a run of {total_steps} steps.",
            fix="Choose 0 <= warmup_steps <= steps.",
        )
    warmup = start + (peak - start) * np.arange(warmup_steps) / max(warmup_steps, 1)
    remaining = total_steps - warmup_steps
    phase = np.arange(remaining) / max(remaining - 1, 1)
    cosine = end + (peak - end) * (1 + np.cos(np.pi * phase)) / 2
    return np.concatenate([warmup, cosine])
