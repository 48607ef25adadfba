"""`core-mri data plan`: a pretraining corpus from a public index, without network."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from core_mri.errors import ConfigError
from data_registry.planning.tallies import Costs
from data_registry.splits import DEFAULT_FRACTIONS
from data_registry.terminal import parse, table

if TYPE_CHECKING:
    from data_registry.planning.corpus import Plan, PlanConfig
    from data_registry.planning.difference import Difference

_MOST_LINES = 12


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Choose a balanced, licence-cleared corpus from an index of public scans; nothing is fetched.

    The same command gives the same plan byte for byte. In OUT: plan.yaml (inputs, counts, hash),
    series.parquet, manifest.s5cmd for `idc download`, sources.yaml for `data ingest`, splits.csv,
    attribution.md, summary.html.
    """

    source: str = "idc"
    """idc (package idc-index-data), or a folder with the files of another version of it."""
    out: Path | None = None
    """Folder of the plan; new, empty, or one of an earlier run."""
    regions: str = "all"
    """Names with commas between them, each with all that lies in it; see `data label`."""
    licence: Annotated[str, tyro.conf.arg(aliases=["--license"])] = "commercial-ok"
    """commercial-ok, any-known, or SPDX ids with commas between them."""
    max_slices: int = 0
    """Slices at most; an error (exit code 1) says so when there are fewer. 0 takes all."""
    seed: int = 0
    """Decides between series of equal standing, and draws the splits without --key-file."""
    balance: float = 1.0
    """0 takes region, sequence, vendor and collection as they come, 1 as equal as can be."""
    exclude_collections: tuple[str, ...] = ()
    """Collections to leave out."""
    tasks: tuple[str, ...] = ("default",)
    """Benchmarks whose patients are left out: default, all, none, or names."""
    deny_list: tuple[Path, ...] = ()
    """Patients to leave out: .csv or .parquet with PatientID, collection_id, StudyInstanceUID or
    SeriesInstanceUID; a registry, whose test patients are; or a deny list of `data dedupe`."""
    min_slices: int = 5
    """Leave out series of fewer slices."""
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS
    """Parts of the patients in train, val and test."""
    key_file: Path | None = None
    """Project key: splits become those of a registry with this key (subject_namespace: idc)."""
    costs: Annotated[Costs, tyro.conf.arg(name="")] = field(default_factory=Costs)
    update: bool = False
    """Show what these inputs, or a newer index, would change in the plan in OUT."""
    write: bool = False
    """With --update: write the new plan."""
    sql: str = ""
    """Instead of a plan: one SELECT over the table `series`, a row for each MR series."""
    json: bool = False
    """Print a JSON object."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb.

    Args:
        arguments: Words after ``core-mri data plan``.

    Returns:
        The exit code.
    """
    from data_registry.planning.corpus import check_met, plan_corpus

    options = parse(_Plan, arguments, "plan")
    if bool(options.sql) == bool(options.out) or (options.write and not options.update):
        raise ConfigError(
            "CONFIG-05", "give either --out DIR or --sql QUERY, and --write only with --update."
        )
    if options.out is None:
        return _answer(plan_corpus(_config(options)), options)
    from data_registry.planning.plan_folder import plan_files, read_plan, write_plan

    old = read_plan(options.out)
    if options.update and old is None:
        raise ConfigError("CONFIG-05", f"--update: there is no plan in {options.out} yet.")
    plan = plan_corpus(_config(options))
    check_met(plan)
    if old is None or old.content["sha256"] == plan.digest:
        write_plan(options.out, plan_files(plan, options.costs))
        _show_plan(plan, options, "unchanged" if old else "new")
        return 0
    from data_registry.planning.difference import compare

    difference = compare(old, plan)
    if not options.update:
        changes = ", ".join(f"{n} {what}" for what, n in difference.counts().items() if n)
        raise ConfigError(
            "CONFIG-03",
            f"{options.out} holds another plan. These inputs would change it: "
            f"{changes or ', '.join(difference.inputs)}.",
            fix="Add --update to see the difference, or give another --out.",
        )
    if options.write:
        write_plan(options.out, plan_files(plan, options.costs))
    _show_difference(difference, plan, options)
    return 0


def _config(options: _Plan) -> PlanConfig:
    from data_registry.planning.corpus import PlanConfig

    regions = _names(options.regions)
    return PlanConfig(
        source=options.source,
        regions=() if "all" in regions else regions,
        licence=_names(options.licence),
        max_slices=options.max_slices,
        seed=options.seed,
        balance=options.balance,
        exclude_collections=options.exclude_collections,
        tasks=options.tasks,
        deny_lists=options.deny_list,
        min_slices=options.min_slices,
        fractions=options.fractions,
        key_file=options.key_file,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _answer(plan: Plan, options: _Plan) -> int:
    rows = plan.sql(options.sql).to_pylist()
    if options.json:
        print(json.dumps(rows, indent=2, default=str))
    else:
        lines = [tuple(map(str, row.values())) for row in rows]
        print(table(f"{len(rows)} rows", list(rows[0]) if rows else [], lines))
    return 0


def _show_plan(plan: Plan, options: _Plan, state: str) -> None:
    from data_registry.planning.tallies import (
        GROUPS,
        cost_rows,
        counts,
        evenness,
        leaks,
        left_out,
        shortages,
        totals,
    )

    whole = totals(plan)
    if options.json:
        content: dict[str, Any] = {
            "out": str(options.out),
            "state": state,
            "sha256": plan.digest,
            "totals": whole,
            "evenness": {column: evenness(plan, column) for column in GROUPS[:4]},
            "short": shortages(plan),
            "patients_in_two_splits": leaks(plan),
            "costs": cost_rows(plan, options.costs),
            "left_out": left_out(plan),
            "tallies": {column: counts(plan, column) for column in GROUPS},
        }
        print(json.dumps(content, indent=2))
        return
    lines = [(name.replace("_", " "), f"{number:,}") for name, number in whole.items()]
    lines.append(("patients in two splits", str(leaks(plan))))
    print(table(f"Plan {options.out} ({state}), sha256 {plan.digest}", ("", "count"), lines))
    for column in GROUPS:
        rows = [row for row in counts(plan, column) if row["slices"]]
        shown = [
            (str(r[column]), f"{r['slices']:,}", f"{r['series']:,}", f"{r['patients']:,}",
             f"{r['bytes'] / 1e9:,.1f}")
            for r in rows[:_MOST_LINES]
        ]  # fmt: skip
        more = f" (the largest {_MOST_LINES} of {len(rows)})" if len(rows) > _MOST_LINES else ""
        head = (column, "slices", "series", "patients", "GB")
        print(table(f"\nBy {column}{more}", head, shown))
    reasons = [(r["reason"], f"{r['series']:,}", f"{r['slices']:,}") for r in left_out(plan)]
    print(table("\nNot chosen", ("reason", "series", "slices"), reasons))
    print("\n" + "\n".join(f"- {sentence}" for sentence in shortages(plan)))
    money = [
        (r["what"], f"{r['value']:,.2f} {r['unit']}", r["from"])
        for r in cost_rows(plan, options.costs)
    ]
    print(table("\nCost", ("", "", "from"), money))
    print(
        f"\nNext: open {options.out}/summary.html; where there is a network, `pip install "
        f"idc-index && idc download {options.out}/manifest.s5cmd --download-dir DIR`."
    )


def _show_difference(difference: Difference, plan: Plan, options: _Plan) -> None:
    state = "written" if options.write else "not written"
    if options.json:
        print(
            json.dumps(
                {"out": str(options.out), "state": state, "sha256": plan.digest,
                 **difference.to_mapping()}, indent=2,
            )
        )  # fmt: skip
        return
    before, after = difference.slices
    print(f"Plan {options.out}: {before:,} slices before, {after:,} after ({state})")
    inputs = [(name, _short(old), _short(new)) for name, (old, new) in difference.inputs.items()]
    if inputs:
        print(table("\nInputs", ("", "before", "after"), inputs))
    lines = [(what, f"{n:,}") for what, n in difference.counts().items()]
    print(table("\nSeries", ("", "count"), lines))
    for what, series in difference.changed.items():
        pairs = Counter((str(before), str(after)) for before, after in series.values())
        shown = [(*pair, f"{n:,}") for pair, n in pairs.most_common(_MOST_LINES)]
        more = f" (the most frequent of {len(pairs)})" if len(pairs) > _MOST_LINES else ""
        print(table(f"\nChanged {what}{more}", ("before", "after", "series"), shown))
    if not options.write:
        print("\nNext: the same command with --write; --json lists every series.")


def _short(value: object) -> str:
    """Hashes by their first digits."""
    if isinstance(value, dict):
        return ", ".join(str(digest)[:12] for digest in value.values())
    return str(value)
