"""What ``pretrain bench`` measured, as the time that steps of other sizes take on that device.

A step is four parts, each proportional to what it has to do (`pretrain.flops.StepWork`):

- encoder: ``a x encoder_flops + b x encoder_elements``, products and what passes through memory;
- heads: ``a x head_flops + b x logits``, the same;
- views: ``a x pixels``;
- clipping, optimizer, moving average: ``a x parameters``.

One measurement fixes one number for each part (b = 0); several, of steps that differ in width or
prototypes, fix both, by least squares of relative errors with no number below zero.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from core_mri.config import load_config
from core_mri.errors import ConfigError
from pretrain.flops import StepWork


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a calibration needs of `pretrain.bench.Bench`."""

    device: str
    precision: str
    batch_size: int
    peak_flops: float
    peak_source: str
    seconds_per_step: float
    data_wait: float
    loader_workers: int
    views_share: float
    update_share: float
    head_share: float
    mfu_kept: float
    work: StepWork

    def __post_init__(self) -> None:
        positive = ("batch_size", "peak_flops", "seconds_per_step")
        shares = ("data_wait", "views_share", "update_share", "head_share")
        wrong = [name for name in positive if not getattr(self, name) > 0]
        wrong += [name for name in shares if not 0 <= getattr(self, name) < 1]
        wrong += [f"work.{f.name}" for f in fields(StepWork) if not getattr(self.work, f.name) > 0]
        if sum(getattr(self, name) for name in shares) >= 1:
            wrong.append("the sum of data_wait, views_share, update_share and head_share")
        if wrong:
            raise ConfigError(
                "CONFIG-05",
                f"no measurement of a step has such values: {', '.join(wrong)}.",
                fix="Measure again with more --measured-steps, on an idle machine.",
            )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Seconds for each unit of work on one device."""

    device: str
    precision: str
    peak_flops: float
    peak_source: str
    encoder: tuple[float, float]
    """For an operation, and for an element."""
    heads: tuple[float, float]
    """For an operation, and for a logit."""
    pixel: float
    parameter: float
    slice_: float | None
    """Seconds in which one core reads a slice; None when other processes read."""
    mfu_kept: float
    """Mean over the files."""
    head_share: float
    files: tuple[str, ...]

    def seconds(self, work: StepWork) -> float:
        """Time of a step of one device, without waiting for slices."""
        return (
            self.encoder[0] * work.encoder_flops
            + self.encoder[1] * work.encoder_elements
            + self.heads[0] * work.head_flops
            + self.heads[1] * work.logits
            + self.pixel * work.pixels
            + self.parameter * work.parameters
        )


def load_calibration(files: Sequence[Path]) -> Calibration:
    """Read what ``core-mri pretrain bench CONFIG --json > FILE`` wrote, one or more times.

    Args:
        files: All of one device and precision.

    Raises:
        ConfigError: CONFIG-02 for a file that is not there or not JSON, CONFIG-01 naming missing
            fields, CONFIG-05 when devices differ or values are impossible.
    """
    return calibrate({str(path): _read(path) for path in files})


def calibrate(found: dict[str, Measured]) -> Calibration:
    """The calibration of measurements by their names.

    Raises:
        ConfigError: CONFIG-05 when they are of different devices or precisions.
    """
    rows = list(found.values())
    kinds = {(row.device, row.precision) for row in rows}
    if len(kinds) > 1:
        raise ConfigError(
            "CONFIG-05",
            f"the calibrations are of different devices or precisions: {sorted(kinds)}.",
            fix="Give those of one device.",
        )
    (device, precision), first = kinds.pop(), rows[0]
    steps = [row.seconds_per_step for row in rows]
    seconds = {
        name: [step * getattr(row, f"{name}_share") for row, step in zip(rows, steps, strict=True)]
        for name in ("views", "update", "head")
    }
    rest = [
        step * (1 - row.data_wait - row.views_share - row.update_share - row.head_share)
        for row, step in zip(rows, steps, strict=True)
    ]
    work = [row.work for row in rows]
    reading = [
        row.data_wait * row.seconds_per_step / row.batch_size
        for row in rows
        if row.loader_workers == 0
    ]
    return Calibration(
        device=device,
        precision=precision,
        peak_flops=first.peak_flops,
        peak_source=first.peak_source,
        encoder=_fit([(w.encoder_flops, w.encoder_elements) for w in work], rest),
        heads=_fit([(w.head_flops, w.logits) for w in work], seconds["head"]),
        pixel=_mean_ratio(seconds["views"], [w.pixels for w in work]),
        parameter=_mean_ratio(seconds["update"], [w.parameters for w in work]),
        slice_=statistics.fmean(reading) if reading else None,
        mfu_kept=statistics.fmean(row.mfu_kept for row in rows),
        head_share=statistics.fmean(row.head_share for row in rows),
        files=tuple(found),
    )


def _read(path: Path) -> Measured:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            "CONFIG-02",
            f"{path}: not readable as JSON: {error}.",
            fix="Write it by: core-mri pretrain bench CONFIG --json > FILE.",
        ) from None
    if not isinstance(content, dict):
        raise ConfigError("CONFIG-02", f"{path}: expected one JSON object.")
    names = {field.name for field in fields(Measured)} & content.keys()
    try:
        return load_config(Measured, {name: content[name] for name in names})
    except ConfigError as error:
        raise ConfigError(
            error.code,
            f"{path}: {error.message}",
            fix=error.fix or "Write it anew by: core-mri pretrain bench CONFIG --json > FILE.",
        ) from None


def _fit(units: Sequence[tuple[float, float]], seconds: Sequence[float]) -> tuple[float, float]:
    """Non-negative (a, b) with the least ``sum ((a u + b v) / t - 1)^2``; b = 0 for one row."""
    from scipy.optimize import nnls

    if len(units) == 1:
        return seconds[0] / units[0][0], 0.0
    table = np.array(units) / np.array(seconds)[:, None]
    scale = table.max(0)
    found, _ = nnls(table / scale, np.ones(len(table)))
    return float(found[0] / scale[0]), float(found[1] / scale[1])


def _mean_ratio(seconds: Sequence[float], units: Sequence[float]) -> float:
    return statistics.fmean(t / u for t, u in zip(seconds, units, strict=True))
