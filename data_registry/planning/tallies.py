"""What a plan holds and leaves out, counted."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

from core_mri.errors import ConfigError
from data_registry.label_words import UNKNOWN
from data_registry.planning.balance import effective_number
from data_registry.planning.corpus import Plan
from data_registry.planning.deny_patients import tasks

GROUPS = ("region", "sequence", "vendor", "collection", "licence", "split")
"""Columns that plans are counted by."""

_COUNTS = """
SELECT {column} AS "{column}",
    sum(num_slices) FILTER (rank >= 0)::BIGINT AS slices,
    count(*) FILTER (rank >= 0) AS series,
    count(DISTINCT patient_id) FILTER (rank >= 0) AS patients,
    sum(num_bytes) FILTER (rank >= 0)::BIGINT AS bytes,
    sum(num_slices) FILTER (left_out = '')::BIGINT AS may_be_chosen,
    sum(num_slices)::BIGINT AS in_the_index
FROM series GROUP BY ALL ORDER BY coalesce(slices, 0) DESC, may_be_chosen DESC NULLS LAST, 1
"""
_TOTALS = """
SELECT count(*) AS series, coalesce(sum(num_slices), 0)::BIGINT AS slices,
    count(DISTINCT patient_id) AS patients, count(DISTINCT study_uid) AS studies,
    count(DISTINCT collection) AS collections,
    count(DISTINCT nullif(region, 'unknown')) AS regions,
    count(DISTINCT nullif(sequence, 'unknown')) AS sequences,
    count(DISTINCT vendor) FILTER (vendor NOT IN ('unknown', 'other')) AS vendors,
    count(DISTINCT stratum) AS strata, coalesce(sum(num_bytes), 0)::BIGINT AS bytes,
    coalesce(sum(num_slices) FILTER (kind = 'copy'), 0)::BIGINT AS slices_of_copies
FROM series WHERE rank >= 0
"""
_LEFT_OUT = """
SELECT CASE WHEN left_out = '' THEN 'not needed: enough slices without' ELSE left_out END AS reason,
    count(*) AS series, sum(num_slices)::BIGINT AS slices, count(DISTINCT patient_id) AS patients
FROM series WHERE rank < 0 GROUP BY ALL ORDER BY slices DESC, reason
"""
_LEAKS = """
SELECT count(*) AS n FROM (SELECT patient_id FROM series WHERE rank >= 0
GROUP BY patient_id HAVING count(DISTINCT split) > 1)
"""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the user says about machines; nothing is assumed."""

    megabits_per_second: float = 0.0
    """Rate of the download."""
    images_per_second: float = 0.0
    """Measured throughput of pretraining on one GPU, such as `core-mri pretrain bench` prints."""
    mfu: float = 0.0
    """Instead of a throughput: the part of `peak_tflops` that is reached, 0..1."""
    peak_tflops: float = 0.0
    """Peak of one GPU, TFLOP/s."""
    tflop_per_image: float = 0.0
    """Work of one training image with all its crops."""
    epochs: float = 1.0
    """How often each slice is seen."""
    price_per_hour: float = 0.0
    """Of one GPU, in any currency."""


def totals(plan: Plan) -> dict[str, int]:
    """Numbers of the chosen series; regions and sequences without ``unknown``."""
    return plan.sql(_TOTALS).to_pylist()[0]


def counts(plan: Plan, column: str) -> list[dict[str, Any]]:
    """Chosen, choosable and all slices by one of `GROUPS`, the largest first."""
    return plan.sql(_COUNTS.format(column=column)).to_pylist()


def left_out(plan: Plan) -> list[dict[str, Any]]:
    """Series that are not chosen, by reason."""
    return plan.sql(_LEFT_OUT).to_pylist()


def leaks(plan: Plan) -> int:
    """Patients in more than one split."""
    return int(plan.sql(_LEAKS)["n"][0].as_py())


def evenness(plan: Plan, column: str) -> dict[str, float]:
    """Effective number of groups (`balance`) of the plan and of all that may be chosen.

    ``unknown`` and ``other`` are no groups.
    """
    rows = [row for row in counts(plan, column) if row[column] not in (UNKNOWN, "other")]
    chosen, may = ([row[name] or 0 for row in rows] for name in ("slices", "may_be_chosen"))
    return {
        "groups": sum(n > 0 for n in chosen),
        "effective": effective_number(chosen) if any(chosen) else 0.0,
        "effective_in_proportion": effective_number(may) if any(may) else 0.0,
    }


def shortages(plan: Plan) -> list[str]:
    """What a reader should know is missing or lopsided, as sentences."""
    said = []
    all_slices = plan.num_slices
    regions = counts(plan, "region")
    first, share = regions[0]["region"], (regions[0]["slices"] or 0) / max(all_slices, 1)
    even = evenness(plan, "region")
    said.append(
        f"{share:.1%} of the slices show the {first}; {even['groups']} regions are as balanced as "
        f"{even['effective']:.1f} equal ones (in proportion to what may be chosen: "
        f"{even['effective_in_proportion']:.1f})."
    )
    few = [r for r in regions if 0 < (r["slices"] or 0) < 1000 and r["region"] != UNKNOWN]
    if few:
        named = ", ".join(f"{r['region']} {r['slices']}" for r in few)
        said.append(f"Fewer than 1,000 slices: {named}.")
    whole = totals(plan)
    if whole["slices_of_copies"]:
        said.append(
            f"{whole['slices_of_copies']:,} slices are copies: the acquisition again, cropped, "
            "registered or repacked. They were taken last, because the rest did not suffice."
        )
    unnamed = sum(r["slices"] or 0 for r in counts(plan, "sequence") if r["sequence"] == UNKNOWN)
    if unnamed:
        said.append(f"No text tells the sequence of {unnamed:,} slices.")
    collections = set(plan.chosen.column("collection").to_pylist())
    for task in tasks().values():
        kept = sorted(collections & set(task.collections))
        if kept:
            said.append(
                f"Not left out although a benchmark uses them: {', '.join(kept)} ({task.why}); "
                f"--tasks default {task.name} leaves them out."
            )
    return said


def cost_rows(plan: Plan, costs: Costs) -> list[dict[str, Any]]:
    """Download and GPU hours from what the user gave; no row without a figure.

    ``hours = slices * epochs / (images/s) / 3600``, and where MFU is given instead,
    ``images/s = mfu * peak TFLOP/s / (TFLOP per image)``.

    Raises:
        ConfigError: CONFIG-01 for a negative figure, CONFIG-05 when they do not give one
            throughput.
    """
    if min(astuple(costs)) < 0:
        raise ConfigError("CONFIG-01", f"rates and prices are not negative, got {costs}.")
    whole = totals(plan)
    rows: list[dict[str, Any]] = [
        {"what": "download", "value": whole["bytes"] / 1e12, "unit": "TB", "from": "index"}
    ]
    if costs.megabits_per_second > 0:
        hours = whole["bytes"] * 8 / (costs.megabits_per_second * 1e6) / 3600
        given = f"{costs.megabits_per_second:g} Mbit/s, given"
        rows.append({"what": "download", "value": hours, "unit": "h", "from": given})
    by_mfu = (costs.mfu, costs.peak_tflops, costs.tflop_per_image)
    if any(by_mfu) and (costs.images_per_second or not all(by_mfu) or costs.mfu > 1):
        raise ConfigError(
            "CONFIG-05",
            "give either --images-per-second, or all of --mfu (0..1), --peak-tflops and "
            "--tflop-per-image.",
        )
    rate, basis = costs.images_per_second, "given as measured"
    if any(by_mfu):
        rate = costs.mfu * costs.peak_tflops / costs.tflop_per_image
        basis = "derived from MFU, peak and work per image, not measured"
    if rate > 0:
        hours = whole["slices"] * costs.epochs / rate / 3600
        source = f"{rate:,.0f} images/s, {basis}; {costs.epochs:g} epochs"
        rows.append({"what": "pretraining", "value": hours, "unit": "GPU h", "from": source})
        if costs.price_per_hour > 0:
            money = hours * costs.price_per_hour
            price = f"{costs.price_per_hour:g} a GPU hour, given"
            rows.append({"what": "pretraining", "value": money, "unit": "money", "from": price})
    elif costs.price_per_hour > 0:
        raise ConfigError(
            "CONFIG-05", "--price-per-hour needs a throughput.", fix="Give --images-per-second."
        )
    return rows
