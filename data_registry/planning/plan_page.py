"""The page of a plan: what it holds, what is short, what was left out and why."""

from __future__ import annotations

from typing import Any

from core_mri.plots import bars
from core_mri.reports import Report
from data_registry.planning.corpus import Plan
from data_registry.planning.tallies import (
    GROUPS,
    Costs,
    cost_rows,
    counts,
    evenness,
    left_out,
    shortages,
    totals,
)

_MOST_BARS = 25


def plan_page(plan: Plan, costs: Costs) -> Report:
    """The plan as a report without any picture of a scan."""
    whole = totals(plan)
    report = Report(
        "A pretraining corpus, planned",
        f"{whole['slices']:,} slices in {whole['series']:,} series of {whole['patients']:,} "
        f"patients: {whole['regions']} regions, {whole['sequences']} sequences, "
        f"{whole['vendors']} vendors, {whole['collections']} collections, "
        f"{whole['bytes'] / 1e12:.2f} TB.",
        f"{plan.index.name}, release {plan.index.release}; plan sha256 {plan.digest}",
    )
    report.add_text("What is short", shortages(plan))
    report.add_table(
        "How balanced it is",
        [
            {
                "by": column,
                "groups": int(even["groups"]),
                "as balanced as so many equal groups": even["effective"],
                "in proportion to what may be chosen": even["effective_in_proportion"],
            }
            for column in GROUPS[:4]
            for even in [evenness(plan, column)]
        ],
        "exp(H) of the shares of slices: 1 when one group holds everything.",
    )
    for column in GROUPS:
        rows = [_row(row, whole["slices"]) for row in counts(plan, column)]
        shown = {str(row[column]): float(row["slices"]) for row in rows[:_MOST_BARS]}
        if column in GROUPS[:3]:
            report.add_figure(
                column.capitalize(), bars(shown, "slices"), f"Chosen slices by {column}."
            )
        report.add_table(column.capitalize(), rows, "The last two columns count slices.")
    report.add_table(
        "Not chosen", left_out(plan), "Each series once, under the first reason that holds."
    )
    report.add_table("Cost", cost_rows(plan, costs))
    inputs = plan.inputs()
    shas = inputs.pop("index_sha256")
    denied = inputs.pop("left_out_patients")
    report.add_facts(
        "Inputs", {name: ", ".join(value) if isinstance(value, list) and name != "split_fractions"
                   else str(value) for name, value in inputs.items()} | shas
    )  # fmt: skip
    report.add_table("Inputs", denied, "Patients left out.")
    return report


def _row(row: dict[str, Any], all_slices: int) -> dict[str, Any]:
    filled = {name: 0 if value is None else value for name, value in row.items()}
    group = next(iter(filled))
    return {
        group: filled[group],
        "slices": filled["slices"],
        "share": f"{filled['slices'] / max(all_slices, 1):.2%}",
        "series": filled["series"],
        "patients": filled["patients"],
        "GB": round(filled["bytes"] / 1e9),
        "may be chosen": filled["may_be_chosen"],
        "in the index": filled["in_the_index"],
    }
