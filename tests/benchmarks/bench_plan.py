"""The index of the Imaging Data Commons as a catalogue, and plans of several sizes.

    pip install idc-index-data; python tests/benchmarks/bench_plan.py

Each step runs in this process, one after the other: wall and CPU seconds (the best of three for
queries), and the highest resident memory up to that line. The reference of the queries is the same
question to the Parquet file of the index, without labels, licences, splits and reasons.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_registry.label_index import index_file
from data_registry.planning.corpus import Plan, PlanConfig, plan_corpus
from data_registry.planning.plan_folder import plan_files, write_plan
from data_registry.planning.tallies import Costs, counts, evenness, leaks, totals

COHORT = (
    "SELECT count(*) AS series, sum(num_slices)::BIGINT AS slices, "
    "count(DISTINCT patient_id) AS patients FROM series WHERE region = 'brain' "
    "AND sequence = 'T1 contrast' AND vendor = 'siemens' AND licence = 'CC-BY-4.0' "
    "AND split = 'train'"
)
BARE_COHORT = (
    "SELECT count(*), sum(instanceCount) FROM read_parquet('{path}') WHERE Modality = 'MR' "
    "AND BodyPartExamined = 'BRAIN' AND Manufacturer = 'SIEMENS' "
    "AND license_short_name = 'CC BY 4.0'"
)


def peak_mb() -> float:
    """Highest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def timed(name: str, action: Callable[[], Any], times: int = 1) -> Any:
    """Print the best of some runs."""
    best = (1e9, 1e9)
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        found = action()
        best = min(best, (time.perf_counter() - wall, time.process_time() - cpu))
    print(f"  {name:<52}{best[0]:>8.2f}{best[1]:>8.2f}{peak_mb():>8.0f}")
    return found


def bare() -> object:
    """The reference of the cohort query."""
    import duckdb

    return duckdb.sql(BARE_COHORT.format(path=index_file("idc"))).fetchall()


def sizes(plan: Plan, largest: int) -> None:
    """How balanced plans of growing size are: first parts of the largest one."""
    print("\n  slices        regions  effective  sequences  collections  of copies      TB")
    for most in (250_000, 1_000_000, 4_000_000, largest):
        part = plan_corpus(dataclasses.replace(plan.config, max_slices=most))
        whole = totals(part)
        even = {name: evenness(part, name)["effective"] for name in ("region", "sequence")}
        collections = evenness(part, "collection")["effective"]
        print(
            f"  {whole['slices']:<14,}{whole['regions']:<9}{even['region']:<11.1f}"
            f"{even['sequence']:<11.1f}{collections:<13.1f}"
            f"{whole['slices_of_copies'] / whole['slices']:<11.1%}{whole['bytes'] / 1e12:>6.2f}"
        )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--max-slices", type=int, default=10_000_000)
    options = parser.parse_args()
    config = PlanConfig(max_slices=options.max_slices)
    print(f"  {'':<52}{'wall s':>8}{'CPU s':>8}{'MB':>8}")
    plan: Plan = timed(
        "index read, labeled, split, chosen: the catalogue", lambda: plan_corpus(config)
    )
    held = plan.sql("SELECT count(*) AS n, sum(num_slices)::BIGINT AS s FROM series").to_pylist()[0]
    print(f"    {held['n']:,} series, {held['s']:,} instances, plan sha256 {plan.digest}")
    cohort = timed("cohort by five conditions", lambda: plan.sql(COHORT).to_pylist()[0], times=3)
    print(f"    {cohort}")
    timed("reference: three conditions on the Parquet file", bare, times=3)
    print(f"    {timed('patients in two splits', lambda: leaks(plan), times=3)} patients")
    timed("counts by region, all and chosen", lambda: counts(plan, "region"), times=3)
    with tempfile.TemporaryDirectory() as name:
        files = timed("the files of the plan", lambda: plan_files(plan, Costs()))
        timed("written", lambda: write_plan(Path(name), files))
    sizes(plan, options.max_slices)


if __name__ == "__main__":
    main()
