"""Figures against their limits: how long each is beyond it, and what follows.

A figure that is beyond its limit for its patience raises an alarm: a warning, and a snapshot when
the rule is grave enough. The gravest rules end the run when the alarm lasts as long again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pretrain.health_config import LEVELS, HealthConfig, Level

log = logging.getLogger(__name__)

_FEWEST_ROWS = 8
"""Rows of targets below which a head's figures say nothing."""


@dataclass(frozen=True)
class Finding:
    """One figure beyond its limit at one step."""

    figure: str
    """Its key in the metrics."""
    value: float
    limit: float
    level: Level
    """The most this rule may do."""
    means: str
    """What it says about the run."""
    remedy: str
    """What to try."""

    def __str__(self) -> str:
        return f"{self.figure} is {self.value:.4g} (limit {self.limit:.4g}): {self.means}."


@dataclass(frozen=True)
class Alarm:
    """A finding that lasted."""

    finding: Finding
    since: int
    """First step, 0-based, at which the figure was beyond its limit."""
    step: int
    level: Level
    """What it calls for now."""


class Alarms:
    """Counts how long every figure is beyond its limit.

    Figures that are not measured at each step keep their last verdict in between.

    Args:
        config: Limits and patience.
        num_prototypes: K of the heads.
        steps: Of the run.
        anchored: Whether the run started from trained weights, which it must not spoil.
        judged_features: Whether class tokens that are all alike are an alarm.
    """

    def __init__(
        self,
        config: HealthConfig,
        *,
        num_prototypes: int,
        steps: int,
        anchored: bool = False,
        judged_features: bool = True,
    ) -> None:
        self.config = config
        self.num_prototypes = num_prototypes
        self.patience = max(config.patience_steps, math.ceil(config.patience_share * steps))
        self.anchored = anchored
        self.ignored = () if judged_features else ("mean_cosine", "rank")
        self.since: dict[str, int] = {}
        self.raised: dict[str, Level] = {}

    def update(self, step: int, numbers: Mapping[str, float]) -> list[Alarm]:
        """Take the numbers of a step.

        Args:
            step: 0-based; steps are told in order.
            numbers: Any figures of health by their keys in the metrics.

        Returns:
            Alarms that are new, or have become graver, at this step; each was logged.
        """
        found = {finding.figure: finding for finding in self._findings(numbers)}
        alarms = []
        for figure in numbers:
            finding = found.get(figure)
            if finding is None:
                self.since.pop(figure, None)
                self.raised.pop(figure, None)
                continue
            since = self.since.setdefault(figure, step)
            level = self._level(finding, step - since + 1)
            if level is None or level == self.raised.get(figure):
                continue
            self.raised[figure] = level
            log.warning("step %d: %s %s", step, finding, finding.remedy)
            alarms.append(Alarm(finding, since, step, level))
        return alarms

    def state(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint must hold."""
        return {"since": dict(self.since), "raised": dict(self.raised)}

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Continue from `state`."""
        self.since, self.raised = dict(state["since"]), dict(state["raised"])

    def _level(self, finding: Finding, steps: int) -> Level | None:
        """What a finding calls for after so many steps; nothing within its patience."""
        if steps < self.patience:
            return None
        most = min(LEVELS.index(finding.level), LEVELS.index(self.config.action))
        if most == LEVELS.index("stop") and steps < 2 * self.patience:
            most -= 1
        return LEVELS[most]

    def _findings(self, numbers: Mapping[str, float]) -> Iterator[Finding]:
        config = self.config
        for figure, value in numbers.items():
            head, _, what = figure.rpartition("_")
            rows = numbers.get(f"{head}_rows", 0.0)
            if what in ("information", "use", "kl") and rows >= _FEWEST_ROWS:
                yield from self._head_findings(figure, head, what, value, rows)
        rules: tuple[tuple[str, float, int, Level, str, str], ...] = (
            ("mean_cosine", config.mean_cosine, 1, "snapshot",
             "all slices look alike to the teacher",
             "Raise objective.koleo_weight, or lower the learning rate."),
            ("rank", config.rank, -1, "snapshot",
             "the class tokens vary in a few directions only",
             "Raise objective.koleo_weight, or lower the learning rate."),
            ("patch_cosine", config.patch_cosine, 1, "warn",
             "all patches of a slice look alike to the teacher",
             "Raise objective.ibot_weight, or use Gram anchoring."),
            ("target_spread", config.target_spread, -1, "stop",
             "the teacher says the same of all slices, which its student has learned to repeat",
             "Lower the learning rate, or raise optimizer.teacher_momentum."),
            ("duplicates", config.duplicates, 1, "warn",
             "slices of a batch repeat each other, and KoLeo pushes equals apart",
             "Run `core-mri data dedupe`, or lower batch_size."),
            ("skipped", config.skipped, 1, "warn",
             "steps are skipped because their loss or gradient is not finite",
             "Lower the learning rate, or take precision float32."),
            ("anchor_drop", config.anchor_drop, 1, "stop" if self.anchored else "snapshot",
             "nearest neighbors find labels worse than with the initial weights",
             "Lower optimizer.learning_rate, or freeze the encoder longer (start_freeze_steps)."),
        )  # fmt: skip
        for figure, limit, sign, level, means, remedy in rules:
            if (
                figure in numbers
                and figure not in self.ignored
                and sign * numbers[figure] > sign * limit
            ):
                yield Finding(figure, numbers[figure], limit, level, means, remedy)

    def _head_findings(
        self, figure: str, head: str, what: str, value: float, rows: float
    ) -> Iterator[Finding]:
        config = self.config
        largest = math.log(min(self.num_prototypes, rows))
        remedy = (
            "Lower objective.teacher_temperature, keep a centering, or lower the learning rate."
        )
        if what == "information" and value < config.information * largest:
            yield Finding(
                figure, value, config.information * largest, "stop",
                f"the {head} head has collapsed: its targets hold no information about the image, "
                "and what the encoder learns from it is worth nothing", remedy,
            )  # fmt: skip
        if what == "kl" and value < config.kl:
            yield Finding(
                figure, value, config.kl, "snapshot",
                f"student and teacher of the {head} head agree on everything: there is nothing "
                "left to learn, as in a collapse", remedy,
            )  # fmt: skip
        # `use` is a part of ln K; few rows cannot reach all of it.
        limit = config.prototype_use * largest / math.log(self.num_prototypes)
        if what == "use" and value < limit:
            yield Finding(
                figure, value, limit, "warn",
                f"the {head} head uses a few of its prototypes for everything", remedy,
            )  # fmt: skip
