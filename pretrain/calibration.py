"""What ``pretrain bench`` measured, as the time that steps of other sizes take on that device.

A step is four parts, each of which grows with what it has to do (`pretrain.flops.StepWork`):

- encoder: ``a x encoder_flops + b x encoder_elements``, products and what passes through memory;
- heads: ``a x head_flops + c + d x logits``, an operation taking as long as one of the encoder's;
- views: ``e + f x pixels``;
- clipping, optimizer, moving average: ``g + h x parameters``.

What is there however small a step is (c, e, g) is the starting of kernels, most of the time of a
small step on a GPU. One measurement fixes one number for each part, that of its operations, pixels
and parameters; several, of steps that differ in width or prototypes, fix all, by least squares of
relative errors with no number below zero.
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
    heads: tuple[float, float, float]
    """For an operation, for a step, and for a logit."""
    views: tuple[float, float]
    """For a step, and for a pixel."""
    update: tuple[float, float]
    """For a step, and for a parameter."""
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
            + self.heads[1]
            + self.heads[2] * work.logits
            + self.views[0]
            + self.views[1] * work.pixels
            + self.update[0]
            + self.update[1] * work.parameters
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
    encoder = _fit([(w.encoder_flops, w.encoder_elements) for w in work], rest)
    return Calibration(
        device=device,
        precision=precision,
        peak_flops=first.peak_flops,
        peak_source=first.peak_source,
        encoder=encoder,
        heads=_fit_heads(work, seconds["head"], encoder[0]),
        views=_fit_line([w.pixels for w in work], seconds["views"]),
        update=_fit_line([w.parameters for w in work], seconds["update"]),
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


def _fit_heads(
    work: Sequence[StepWork], seconds: Sequence[float], operation: float
) -> tuple[float, float, float]:
    if len(work) == 1:
        return seconds[0] / work[0].head_flops, 0.0, 0.0
    products = [operation * w.head_flops for w in work]
    return operation, *_fit([(1.0, w.logits) for w in work], seconds, products)


def _fit_line(units: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(at 0, for a unit)."""
    if len(units) == 1:
        return 0.0, seconds[0] / units[0]
    return _fit([(1.0, unit) for unit in units], seconds)


def _fit(
    units: Sequence[tuple[float, float]], seconds: Sequence[float], known: Sequence[float] = ()
) -> tuple[float, float]:
    """Non-negative (a, b) with the least ``sum ((known + a u + b v) / t - 1)^2``.

    b = 0 for one row.
    """
    from scipy.optimize import nnls

    if len(units) == 1:
        return seconds[0] / units[0][0], 0.0
    times = np.array(seconds)
    table = np.array(units) / times[:, None]
    scale = table.max(0)
    found, _ = nnls(table / scale, 1 - np.array(known or np.zeros(len(times))) / times)
    return float(found[0] / scale[0]), float(found[1] / scale[1])
