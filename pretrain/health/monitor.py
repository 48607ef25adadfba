"""Is the run alive? All figures of health, measured as the run goes on, and judged."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from core_mri.devices import is_main, world_size
from core_mri.models.encoder import Encoder
from pretrain.config import PretrainConfig
from pretrain.data import Sample
from pretrain.health.alarms import Alarm, Alarms
from pretrain.health.anchor import Anchor
from pretrain.health.network import duplicate_rate, gradient_norms, prototype_norms
from pretrain.health.patches import PatchWatch
from pretrain.health.spectrum import FeatureQueue, mean_cosine, spectrum
from pretrain.losses import reduce_sum

_SKIP_WINDOW = 1000
_WATCHED_SLICES = 8


class HealthMonitor:
    """Measures on the device, without waiting for it; judges numbers when they have arrived.

    Cheap figures come every step, those of spectrum, gradients and batch every ``health.every``
    steps, probes and patches every ``health.probe_every`` steps.

    Args:
        config: Of the run.
        judged_features: Whether class tokens that are all alike are an alarm.
    """

    def __init__(self, config: PretrainConfig, *, judged_features: bool = True) -> None:
        self.config = config.health
        self.steps = config.steps
        self.warmup = config.optimizer.warmup_steps
        self.queue = FeatureQueue(max(1, config.health.queue // world_size()))
        self.alarms = Alarms(
            config.health,
            num_prototypes=config.objective.num_prototypes,
            steps=config.steps,
            anchored=bool(config.start),
            judged_features=judged_features,
        )
        self.anchor: Anchor | None = None
        self.patches: PatchWatch | None = None
        self.history: list[dict[str, Any]] = []
        """Every alarm so far, as it stands in the report."""
        self._skipped: deque[bool] = deque(maxlen=_SKIP_WINDOW)
        self._renewed = False

    def due(self, step: int) -> bool:
        """Whether the dearer figures are measured after step `step`."""
        return (step + 1) % self.config.every == 0 or step + 1 == self.steps

    def probe_due(self, finished: int) -> bool:
        """Whether probes are taken when so many steps are finished; 0 is the initial weights."""
        every = self.config.probe_every
        return bool(every) and (finished % every == 0 or finished == self.steps)

    def measure(
        self,
        step: int,
        features: Tensor,
        student: nn.ModuleDict,
        samples: Sequence[Sample],
        *,
        scale: Tensor,
    ) -> dict[str, Tensor]:
        """Figures of a step, on the device, after its update.

        Args:
            step: 0-based.
            features: [B, D], class tokens of the first view of this worker's images.
            student: With its gradients.
            samples: The slices of this worker.
            scale: What the gradients were divided by.
        """
        self.queue.push(features)
        numbers = {"mean_cosine": mean_cosine(features)}
        if self.due(step):
            repeated = torch.tensor([duplicate_rate(samples) / world_size()])
            numbers |= spectrum(self.queue.features())
            norms = gradient_norms(student)
            numbers |= {name: norm * scale for name, norm in norms.items()}
            numbers |= prototype_norms(student)
            numbers["duplicates"] = reduce_sum(repeated.to(features.device))[0]
        return numbers

    def probe(self, finished: int, encoder: Encoder) -> dict[str, float]:
        """Patches of some fixed slices and probes, the same numbers on all workers.

        Args:
            finished: Steps that are finished; the first call is that of the initial weights, or
                follows `restore`.
            encoder: Of the teacher, in evaluation mode.
        """
        found: list[dict[str, float]] = [{}]
        if is_main() and self.anchor is not None and self.patches is not None:
            # The earlier teacher of the drift: the initial one, then that at the warm-up's end.
            renew = not self._renewed and finished >= self.warmup
            patches = self.patches.measure(encoder, renew=renew)
            found = [self.anchor.measure(encoder) | {k: float(v) for k, v in patches.items()}]
        self._renewed |= finished >= self.warmup
        if world_size() > 1:
            dist.broadcast_object_list(found, src=0)
        return found[0]

    def judge(self, step: int, numbers: Mapping[str, float], *, skipped: bool) -> list[Alarm]:
        """Hold the numbers of a step against the limits.

        Args:
            step: 0-based.
            numbers: Of this step, the same on all workers.
            skipped: Whether the step changed nothing because something was not finite.

        Returns:
            The alarms that are new or graver.
        """
        self._skipped.append(skipped)
        rate = sum(self._skipped) / max(len(self._skipped), self.alarms.patience)
        found = self.alarms.update(step, {**numbers, "skipped": rate})
        self.history += [
            {
                "step": alarm.step, "since": alarm.since, "level": alarm.level,
                "figure": alarm.finding.figure, "value": alarm.finding.value,
                "limit": alarm.finding.limit, "means": alarm.finding.means,
            }
            for alarm in found
        ]  # fmt: skip
        return found

    def watch(self, anchor: Anchor) -> None:
        """Take the slices that are probed; on the main worker alone."""
        self.anchor = anchor
        shown = torch.cat([anchor.slices.queries, anchor.slices.bank])[:_WATCHED_SLICES]
        self.patches = PatchWatch(shown.float())

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {
            "alarms": self.alarms.state(),
            "queue": self.queue.state(),
            "skipped": list(self._skipped),
            "history": list(self.history),
            "renewed": self._renewed,
            "anchor": self.anchor.state() if self.anchor else {},
            "patches": self.patches.reference if self.patches else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.alarms.restore(state["alarms"])
        self.queue.restore(state["queue"])
        self._skipped.extend(state["skipped"])
        self.history = list(state["history"])
        self._renewed = bool(state["renewed"])
        if self.anchor is not None:
            self.anchor.restore(state["anchor"])
        if self.patches is not None:
            self.patches.reference = state["patches"]
