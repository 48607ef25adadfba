"""Region labels of the MR series of the Imaging Data Commons against where the tumours are.

    pip install idc-index-data; python tests/benchmarks/bench_labels.py [--wrong 40]

Reference: the tumour location of the collection, where it names one region. It is weak: a patient
with breast cancer also has a scan of the brain, so "wrong" here is partly the reference. It is no
source of the labels. Collections are halved by a hash of their name: reliabilities and words (other
languages aside) were chosen on the half "chosen on". One rule was added after reading what differed
in "held out": several regions in one text are what contains them all. The largest collections
decide the means over series, so the mean over collections stands beside them. "no I-SPY" leaves out
three collections whose region is told by the name of a trial.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections import Counter, defaultdict
from pathlib import Path

from data_registry.label_index import index_file, series_facts
from data_registry.label_report import compatible
from data_registry.label_words import UNKNOWN, find_region
from data_registry.labels import cast_votes, count_votes

QUERY = """
SELECT collection_id, tumor_locations, BodyPartExamined, SeriesDescription, StudyDescription,
       count(*) AS n
FROM read_parquet(?) AS s JOIN read_parquet(?) AS c USING (collection_id)
WHERE Modality = 'MR' GROUP BY ALL
"""
TRIALS = ("ispy1", "ispy2", "acrin_6698")
RULES = ("header", "header, else description, else study", "vote")


def half(collection: str) -> str:
    """The half of a collection."""
    odd = hashlib.sha256(collection.encode()).digest()[-1] % 2
    return "chosen on" if odd else "held out"


def answers(body_part: str, series: str, study: str) -> dict[str, tuple[str, float]]:
    """Region and confidence by each rule."""
    facts = {"BodyPartExamined": body_part, "SeriesDescription": series, "StudyDescription": study}
    votes = cast_votes(facts, "", {})
    labels = count_votes(facts, "", votes)
    said = votes["region"]
    first = next((said[s] for s in ("header", "description", "study") if s in said), UNKNOWN)
    return {
        RULES[0]: (said.get("header", UNKNOWN), 0.0),
        RULES[1]: (first, 0.0),
        RULES[2]: (labels.region, labels.region_confidence),
    }


def _without_header(index: Path) -> str:
    """Share of the series without BodyPartExamined whose region is known."""
    found: Counter[bool] = Counter()
    for facts, number in series_facts(index):
        if not facts.get("BodyPartExamined"):
            found[bool(cast_votes(facts, "", {})["region"])] += number
    return f"{found[True]} of {found.total()} series labeled, {found[True] / found.total():.1%}"


def main() -> None:
    """Print coverage and agreement with the reference by rule and half, and the calibration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wrong", type=int, default=20, help="lines of contradictions to print")
    options = parser.parse_args()
    import duckdb

    index = index_file("idc")
    rows = duckdb.sql(QUERY, params=[str(index), str(index.with_name("collections_index.parquet"))])
    started = time.process_time()
    scores: dict[tuple[str, str], dict[str, Counter[str]]] = defaultdict(
        lambda: defaultdict(Counter)
    )
    bins: dict[str, dict[float, Counter[bool]]] = defaultdict(lambda: defaultdict(Counter))
    wrong: Counter[tuple[str, ...]] = Counter()
    for collection, place, body_part, series, study, n in rows.fetchall():
        truth = find_region([place or ""]) if "," not in (place or "") else UNKNOWN
        if truth in (UNKNOWN, "phantom"):
            continue
        found = answers(body_part or "", series or "", study or "")
        for rule, (region, confidence) in found.items():
            right = compatible(region, truth)
            outcome = "unknown" if region == UNKNOWN else "right" if right else "wrong"
            scores[half(collection), rule][collection][outcome] += n
            if rule == "vote" and region != UNKNOWN:
                bins[half(collection)][min(int(confidence * 10) / 10, 0.9)][right] += n
        region, confidence = found["vote"]
        if region != UNKNOWN and not compatible(region, truth):
            key = (half(collection), collection, region, body_part or "-", study or "-")
            wrong[key] += n
    print(f"{time.process_time() - started:.1f} CPU-seconds")
    print(f"{'half':10} {'rule':36} {'series':>7} {'known':>7} {'right':>7} | mean of collections")
    for (name, rule), by in sorted(scores.items()):
        for label, names in (("", list(by)), ("no I-SPY", [c for c in by if c not in TRIALS])):
            total = sum((by[c] for c in names), Counter())
            series, known = total.total(), total["right"] + total["wrong"]
            means = [
                (c["right"] + c["wrong"], c["right"], c.total()) for c in (by[x] for x in names)
            ]
            coverage = sum(k / t for k, _, t in means) / len(means)
            with_any = [(k, r) for k, r, _ in means if k]
            accuracy = sum(r / k for k, r in with_any) / len(with_any)
            print(
                f"{name:10} {rule:36} {series:7} {known / series:7.1%} "
                f"{total['right'] / known:7.2%} | {coverage:.1%} known, {accuracy:.1%} right, "
                f"n = {len(means)} {label}"
            )
    print("\nwithout BodyPartExamined, all collections:", _without_header(index))
    print("\nconfidence of the vote, and share that agrees with the reference")
    for name, by_bin in sorted(bins.items()):
        for low, counts in sorted(by_bin.items()):
            print(f"{name:10} {low:.1f}+ {counts.total():7} {counts[True] / counts.total():7.1%}")
    print("\ncontradictions with the reference, most frequent first")
    for key, n in wrong.most_common(options.wrong):
        print(n, *key, sep=" | ")


if __name__ == "__main__":
    main()
