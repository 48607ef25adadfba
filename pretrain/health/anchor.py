"""Probes while the run goes on, against the weights it began with: the anchor.

Continued training can destroy good weights within some ten thousand images (dinov2 issue 204: from
80 % to 10 %) while every loss looks well. Labels that come free with the data tell.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from core_mri.models.encoder import Encoder
from pretrain.probe import METHODS, ProbeSet

log = logging.getLogger(__name__)

MIN_PATIENTS = 8
"""Validation patients below which a fall of a few points cannot be told from chance."""


class Anchor:
    """Nearest-neighbor and linear probes, and how far they fell below the initial weights.

    Args:
        slices: The fixed slices; those judged come from validation patients where there are any.
    """

    def __init__(self, slices: ProbeSet) -> None:
        self.slices = slices
        self.initial: dict[str, float] = {}
        judged = [task for task, n in slices.patients.items() if n >= MIN_PATIENTS]
        self.judged = judged if slices.from_validation else []
        if not self.judged:
            log.info(
                "the run cannot be stopped for probes below those of its initial weights: that "
                "takes %d validation patients with a label, here are %s.",
                MIN_PATIENTS, slices.told_patients(),
            )  # fmt: skip

    def measure(self, encoder: Encoder) -> dict[str, float]:
        """Scores of an encoder; the first call is that of the initial weights.

        Returns:
            ``knn_TASK`` and ``linear_TASK``, means over patients, and ``anchor_drop``: how far the
            mean of the nearest-neighbor accuracies fell below the initial one, where there are
            enough validation patients to say so.
        """
        features = self.slices.embed(encoder)
        scores = {
            f"{method}_{task}": float(np.mean(list(by_patient.values())))
            for method in METHODS
            for task, by_patient in self.slices.scores(features, method).items()
        }
        self.initial = self.initial or dict(scores)
        fallen = [self.initial[f"knn_{task}"] - scores[f"knn_{task}"] for task in self.judged]
        return scores | ({"anchor_drop": float(np.mean(fallen))} if fallen else {})

    def state(self) -> dict[str, float]:
        """What a checkpoint must hold."""
        return dict(self.initial)

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from `state`."""
        self.initial = dict(state)
