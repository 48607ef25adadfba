"""Classes from frozen mean features: linear probe and k nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from core_mri.metrics import balanced_accuracy
from core_mri.training.probes import LinearMap, fit_linear_map, knn_probe

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""L2 penalties of the linear probe, chosen among by validation patients."""
DEFAULT_PENALTY = 1e-2


@dataclass(frozen=True)
class ProbeResult:
    """Class probabilities of validation and test examples."""

    val: Tensor
    """[V, C]."""
    test: Tensor
    """[M, C], rows in the order of the test examples."""
    note: str
    """How the classifier was chosen."""
    fitted: LinearMap | None = None
    """The linear probe."""


def probe(
    method: Literal["linear probe", "knn"],
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test_x: Tensor,
) -> ProbeResult:
    """Fit `method` on (features, classes) of training examples and score test examples.

    The penalty of the linear probe is the one with the best balanced accuracy on the validation
    examples, the larger one at a tie, and `DEFAULT_PENALTY` without any. knn has nothing to choose.
    """
    if method == "knn":
        k = min(10, len(train[1]))
        on_val, on_test = (knn_probe(*train, x, k=k) for x in (val[0], test_x))
        return ProbeResult(on_val, on_test, f"{k} neighbours")
    if not len(val[1]):
        chosen = fit_linear_map(*train, l2=DEFAULT_PENALTY)
        note = f"penalty {DEFAULT_PENALTY:g}, as there is no validation example"
    else:
        maps = {l2: fit_linear_map(*train, l2=l2) for l2 in PENALTIES}
        truth = val[1].numpy()
        quality = {
            l2: balanced_accuracy(truth, found.probabilities(val[0]).argmax(1).numpy())
            for l2, found in maps.items()
        }
        best = max(PENALTIES, key=lambda l2: (quality[l2], l2))
        chosen, note = maps[best], f"penalty {best:g}, chosen on {len(truth)} validation examples"
    return ProbeResult(chosen.probabilities(val[0]), chosen.probabilities(test_x), note, chosen)
