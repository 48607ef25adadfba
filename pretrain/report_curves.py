"""The curves of a run's report: every figure of its metrics that is there, in groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from core_mri.reports import Report

_MOST_POINTS = 400


class _Group(NamedTuple):
    heading: str
    takes: Callable[[str], bool]
    ylabel: str
    caption: str
    log_y: bool = False


def _ends(*ends: str) -> Callable[[str], bool]:
    return lambda name: name.endswith(tuple(f"_{end}" for end in ends))


def _is(*names: str) -> Callable[[str], bool]:
    return lambda name: name in names


_HEALTH = "Health of the teacher"
_GROUPS = (
    _Group(_HEALTH, _ends("information"), "mutual information, nats",
           "Information that the targets hold about the image; near 0 means collapse."),
    _Group(_HEALTH, _ends("entropy"), "entropy of a target, nats",
           "0 is one prototype for sure, ln K is all of them alike."),
    _Group(_HEALTH, _ends("kl"), "KL(teacher || student), nats",
           "What the student has yet to learn; near 0 means that nothing is asked of it."),
    _Group(_HEALTH, _ends("use"), "H(mean target) / ln K",
           "How evenly the prototypes are used; 0 is one of them for everything."),
    _Group(_HEALTH, _ends("used"), "prototypes",
           "Prototypes that are the first choice of some row of the step."),
    _Group(_HEALTH, _is("target_spread"), "spread of targets over slices",
           "1 at most; near 0 means collapse."),
    _Group("Spread of the features", _is("mean_cosine", "patch_cosine"), "mean cosine",
           "Between slices, and between patches of a slice: 1 means that all look alike."),
    _Group("Spread of the features", _is("rank"), "effective rank (RankMe)",
           "Directions that centered class tokens use. KoLeo can keep it high while the heads are "
           "dead: read it beside the mutual information."),
    _Group("Spread of the features", _is("alpha"), "alpha-ReQ",
           "Decay of their spectrum; about 1 is healthy, large means few directions."),
    _Group("Spread of the features", _is("patch_drift"), "RMS change of patch cosines",
           "Against the teacher at the end of the warm-up (before it, against the initial "
           "weights)."),
    _Group("Gradients and weights", lambda name: name.startswith("grad_norm"), "gradient norm",
           "Before clipping.", log_y=True),
    _Group("Gradients and weights", _ends("prototype_norm"), "largest norm of a prototype",
           "Prototypes are scaled to length 1 before use."),
    _Group("Gradients and weights", _is("duplicates"), "part of the batch",
           "Slices that repeat another one of their batch."),
    _Group("Speed", _is("images_per_second"), "slices / s", "Of each step, reading included."),
)  # fmt: skip


def add_curves(report: Report, metrics: Sequence[Mapping[str, Any]], losses: Sequence[str]) -> None:
    """Add the losses and every group of figures that the metrics hold.

    Args:
        report: The page.
        metrics: Lines of ``metrics.jsonl``; a figure may stand in some of them only.
        losses: Keys of the losses.
    """
    from core_mri.plots import curves

    names = list(dict.fromkeys(name for line in metrics for name in line))
    groups = (
        _Group("Losses", _is(*set(losses) - {"target_spread"}), "loss",
               "A loss alone tells little: see the health of the teacher."),
        *_GROUPS,
    )  # fmt: skip
    for group in groups:
        series = {name: _points(metrics, name) for name in names if group.takes(name)}
        series = {name: points for name, points in series.items() if len(points[0])}
        if series:
            longest = max(len(steps) for steps, _ in series.values())
            figure = curves(
                series, "step", group.ylabel, log_y=group.log_y,
                points_per_bin=-(-longest // _MOST_POINTS),
            )  # fmt: skip
            report.add_figure(group.heading, figure, group.caption)


def add_probe_curves(report: Report, metrics: Sequence[Mapping[str, Any]], origin: str) -> None:
    """Add the probes of the run beside the scores of its initial weights.

    Args:
        report: The page.
        metrics: Lines of ``metrics.jsonl``; the first one has the scores of the initial weights.
        origin: What the initial weights are, such as ``random``.
    """
    from core_mri.plots import curves

    for method, told in (("knn", "Nearest neighbors"), ("linear", "A linear map")):
        series = {}
        names = {name for line in metrics for name in line if name.startswith(f"{method}_")}
        for name in sorted(names):
            steps, values = _points(metrics, name)
            # The first point was taken before step 0.
            finished = np.where(np.arange(len(steps)) == 0, steps, steps + 1)
            task = name.removeprefix(f"{method}_")
            series[task] = (finished, values)
            series[f"{task}, {origin}"] = (finished[[0, -1]], values[[0, 0]])
        if series:
            report.add_figure(
                "Probes while it trained",
                curves(series, "finished steps", "accuracy, mean over patients"),
                f"{told} on labels that come free with the data, against the same probe of the "
                f"{origin} weights that the run began with.",
            )


def _points(
    metrics: Sequence[Mapping[str, Any]], name: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Steps and values of a figure where it was measured."""
    found = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps), np.array(values, dtype=np.float64)
