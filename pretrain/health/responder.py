"""What an alarm does: a snapshot that stays, or the end of the run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from core_mri.errors import RunError
from core_mri.runs import Run, writing
from pretrain.health.alarms import Alarm
from pretrain.pictures import patches_picture, views_picture
from pretrain.stages import samples_at

if TYPE_CHECKING:
    from pretrain.train import Trainer

SNAPSHOTS = "alarms"
"""Folder of a run with one folder for each snapshot."""


class Responder:
    """Acts on the alarms of each step, on all workers alike.

    Args:
        run: Where snapshots go.
        trainer: Whose alarms they are.
    """

    def __init__(self, run: Run, trainer: Trainer) -> None:
        self.run = run
        self.trainer = trainer
        self._newest = -trainer.health.alarms.patience

    def __call__(self, step: int) -> None:
        """Answer the alarms of step `step` (0-based).

        Raises:
            RunError: RUN-06 for a collapse, RUN-07 for a fall below the initial weights.
        """
        alarms = self.trainer.alarms
        if any(alarm.level != "warn" for alarm in alarms):
            self._snapshot(step, alarms)
        for alarm in alarms:
            if alarm.level == "stop":
                raise _stopped(self.run, alarm)

    def _snapshot(self, step: int, alarms: list[Alarm]) -> None:
        """Checkpoint and pictures of the run as it is, at most once in the patience of an alarm."""
        patience = self.trainer.health.alarms.patience
        if step - self._newest < patience:
            return
        self._newest = step
        folder = self.run.keep_checkpoint(SNAPSHOTS, step + 1, self.trainer.state())
        encoder = self.trainer.released()
        if not self.run.main:
            return
        with writing(folder):
            told = [str(alarm.finding) for alarm in alarms]
            (folder / "alarms.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
            trainer = self.trainer
            numbers = samples_at(trainer.config, step)[:4]
            views, masks = trainer.views_of(trainer.samples_of(step)[:4], numbers)
            figures = {"views": views_picture(views, masks)}
            if trainer.health.patches is not None:
                figures["patches"] = patches_picture(
                    {"teacher": encoder}, trainer.health.patches.images[:4]
                )
            for name, figure in figures.items():
                figure.savefig(folder / f"{name}.png")
                self.run.log_figure(f"alarm/{name}", figure, step)


def _stopped(run: Run, alarm: Alarm) -> RunError:
    finding = alarm.finding
    return RunError(
        "RUN-07" if finding.figure == "anchor_drop" else "RUN-06",
        f"stopped at step {alarm.step}: since step {alarm.since}, {finding} See "
        f"{run.out / 'report.html'}; the state at the first alarm is in {run.out / SNAPSHOTS}.",
        fix=f"{finding.remedy} To only be warned: --health.action warn.",
    )
