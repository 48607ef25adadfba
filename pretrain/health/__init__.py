"""Is the run alive? Figures that a loss cannot give, and alarms on them."""

from __future__ import annotations

from pretrain.health.information import head_statistics
from pretrain.health.spectrum import mean_cosine

__all__ = ["head_statistics", "mean_cosine"]
