"""What a new plan changes in one that was made before."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from core_mri.errors import ConfigError
from data_registry.planning.corpus import Plan
from data_registry.planning.plan_folder import StoredPlan

_COMPARED = {
    "licence": "licence",
    "num_slices": "number of slices",
    "address": "content (another version of the files)",
    "split": "split",
    "stratum": "stratum (labels)",
}
_FIXED = ("split_key", "split_fractions")


@dataclass(frozen=True)
class Difference:
    """Series by what became of them; a series can be changed in several ways."""

    inputs: dict[str, tuple[Any, Any]]
    """Input to its old and new value."""
    gone: tuple[str, ...]
    """No longer in the index."""
    dropped: dict[str, str]
    """Still in the index, and no longer chosen: UID to reason."""
    added: tuple[str, ...]
    """Chosen now, not before."""
    changed: dict[str, dict[str, tuple[Any, Any]]]
    """What changed (`_COMPARED`) to UID to its old and new value."""
    slices: tuple[int, int]
    """Slices before and after."""

    def counts(self) -> dict[str, int]:
        """How many series, by what became of them."""
        reasons = Counter(self.dropped.values())
        return {
            "gone from the index": len(self.gone),
            **{f"no longer chosen: {reason}": n for reason, n in sorted(reasons.items())},
            "new in the plan": len(self.added),
            **{f"changed {what}": len(series) for what, series in self.changed.items()},
        }

    def to_mapping(self) -> dict[str, Any]:
        """For JSON: all series by UID."""
        return {
            "inputs": {name: list(pair) for name, pair in self.inputs.items()},
            "slices": list(self.slices),
            "counts": self.counts(),
            "gone": list(self.gone),
            "no_longer_chosen": self.dropped,
            "new": list(self.added),
            "changed": {
                what: {uid: list(pair) for uid, pair in series.items()}
                for what, series in self.changed.items()
            },
        }


def compare(old: StoredPlan, new: Plan) -> Difference:
    """What an update would do.

    Raises:
        ConfigError: CONFIG-04 when it would draw the splits anew: a test patient could become a
            training patient.
    """
    before, after = old.content["inputs"], new.inputs()
    for name in _FIXED:
        if before[name] != after[name]:
            raise ConfigError(
                "CONFIG-04",
                f"an update cannot draw the splits of {old.path} anew, and {name} is "
                f"{after[name]} instead of {before[name]}.",
                fix="Give the old --seed, --fractions and --key-file, or another --out.",
            )
    columns = ("series_uid", *_COMPARED)
    was = _by_uid(old.series.select(list(columns)).to_pylist())
    now = _by_uid(new.chosen.select(list(columns)).to_pylist())
    places = ("series_uid", "left_out")
    known = dict(zip(*(new.series.column(name).to_pylist() for name in places), strict=True))
    lost = sorted(was.keys() - now.keys())
    changed: dict[str, dict[str, tuple[Any, Any]]] = {}
    for uid in sorted(was.keys() & now.keys()):
        for name, what in _COMPARED.items():
            pair = (was[uid][name], now[uid][name])
            if pair[0] != pair[1]:
                changed.setdefault(what, {})[uid] = pair
    return Difference(
        {k: (before.get(k), v) for k, v in after.items() if before.get(k) != v},
        tuple(uid for uid in lost if uid not in known),
        {uid: known[uid] or "others are taken instead" for uid in lost if uid in known},
        tuple(sorted(now.keys() - was.keys())),
        changed,
        (old.content["totals"]["slices"], new.num_slices),
    )


def _by_uid(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["series_uid"]: row for row in rows}
