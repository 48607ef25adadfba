"""The dataset card: what a registry or a cohort is, where from, what it must not be used for.

`README.md` has the front matter that data hubs read and the sections of Datasheets for Datasets
(Gebru et al., Communications of the ACM 64(12), 2021). What a registry does not know is said to be
unknown. Beside it stand `croissant.json` and the two tables that it describes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_mri.errors import ConfigError, DataError
from core_mri.version import __version__
from data_registry import cohorts
from data_registry.governance.audit_log import now
from data_registry.governance.croissant import SLICES, VOLUMES, File, croissant
from data_registry.governance.propagation import (
    Mixture,
    RegisteredSource,
    mixture_of,
    registered_sources,
)
from data_registry.governance.uses import record_use
from data_registry.governance.withdrawals import withdrawn
from data_registry.shards import PARTIAL, cannot_write, file_hash

if TYPE_CHECKING:
    from data_registry.catalogue import Registry

NAMES = ("README.md", "croissant.json", "volumes.parquet", "slices.parquet")
"""What a card is made of."""
_GROUPS = ("region", "sequence", "plane", "contrast", "vendor", "source", "split", "role")
_UNKNOWN = "Not known to the registry."
_HEADERS = (
    "Header facts are those of an allow-list, cleaned by the rules of `core-mri data deidentify`; "
    "ids are keyed hashes, and file names, dates and free text are not stored. Whether text in "
    "pixels and faces were removed is decided before ingest and is not recorded here: a public "
    "release is checked by `core-mri data export --release public`."
)
_LIMITS = (
    "Labels of region, sequence and contrast are votes of headers, names and timing; some are "
    "wrong or unknown (`core-mri data label` shows how far the sources agree).",
    "It is a choice of scans at hand, not a sample of any population: prevalence, age, sex and "
    "scanners are those of its sources.",
    "Not for diagnosis; not a medical device.",
)


@dataclass(frozen=True)
class Facts:
    """What the catalogue says."""

    name: str
    totals: dict[str, int]
    groups: dict[str, list[tuple[str, int, int, int]]]
    """Column to its values, each with volumes, slices and subjects."""
    sources: list[RegisteredSource]
    mixture: Mixture
    cohort: cohorts.Cohort | None
    withdrawals: int
    synthetic: int


def write_card(registry: Registry, out: Path, *, cohort: str = "") -> Facts:
    """Write the card of a registry, or of one of its cohorts.

    Args:
        registry: The registry.
        out: Folder; new, empty, or one of an earlier card.
        cohort: Name of a frozen cohort; empty for all.

    Raises:
        ConfigError: CONFIG-02 when there is no such cohort, CONFIG-03 when the folder holds
            something else.
        DataError: DATA-09 when there are no volumes, DATA-07 when it cannot be written.
    """
    import pyarrow.parquet

    where = cohorts.condition(registry, cohort) or "true"
    facts = collect(registry, where, cohort)
    if out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - set(NAMES)):
        raise ConfigError(
            "CONFIG-03",
            f"{out} holds something else than a card.",
            fix="Give --out a new or empty folder.",
        )
    tables = {
        "volumes.parquet": f"SELECT {', '.join(VOLUMES)} FROM volumes WHERE {where} ORDER BY 1",
        "slices.parquet": f"SELECT {', '.join(SLICES)} FROM slices WHERE volume_id IN "
        f"(SELECT volume_id FROM volumes WHERE {where}) ORDER BY 1, 2",
    }
    subjects = registry.rows(f"SELECT DISTINCT subject_id FROM volumes WHERE {where}")
    record_use(
        registry.path, "card", [s for (s,) in subjects],
        {"folder": str(out.resolve()), "cohort": cohort, **facts.totals},
    )  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = []
        for name, query in tables.items():
            aside = out / f"{PARTIAL}{name}"
            pyarrow.parquet.write_table(registry.sql(query), aside, compression="zstd")
            aside.replace(out / name)
            size = (out / name).stat().st_size
            files.append(
                File(
                    path=name, form="application/x-parquet", size=size,
                    sha256=file_hash(out / name),
                )
            )  # fmt: skip
        document = describe(facts, [*files, *_shards(registry, where)])
        _write(out / "croissant.json", json.dumps(document, indent=2) + "\n")
        _write(out / "README.md", readme(facts))
    except OSError as error:
        raise cannot_write(error, f"{out}") from error
    return facts


def collect(registry: Registry, where: str, cohort: str) -> Facts:
    """Count what meets a condition.

    Raises:
        DataError: DATA-09 when nothing does.
    """
    counts = (
        "count(*) AS volumes, coalesce(sum(num_slices), 0)::BIGINT AS slices, "
        "count(DISTINCT subject_id) AS subjects"
    )
    totals = registry.sql(f"SELECT {counts} FROM volumes WHERE {where}").to_pylist()[0]
    if not totals["volumes"]:
        raise DataError("DATA-09", f"{registry.path} holds no volumes to describe.")
    groups = {
        name: list(
            registry.rows(
                f"SELECT {name}, {counts} FROM volumes WHERE {where} GROUP BY ALL "
                "ORDER BY volumes DESC, 1"
            )
        )
        for name in _GROUPS
    }
    known = registered_sources(registry)
    sources = [known[name] for name in sorted(row[0] for row in groups["source"])]
    synthetic = registry.sql(f"SELECT 1 AS n FROM volumes WHERE {where} AND synthetic")
    return Facts(
        name=cohort or registry.path.resolve().name,
        totals=totals,
        groups=groups,
        sources=sources,
        mixture=mixture_of(sources),
        cohort=cohorts.load(registry, cohort) if cohort else None,
        withdrawals=len(withdrawn(registry.path)),
        synthetic=len(synthetic),
    )


def readme(facts: Facts) -> str:
    """The card as Markdown."""
    totals = facts.totals
    parts = [
        *_front_matter(facts), "", f"# {facts.name}", "",
        f"{_sentence(facts)} Described by core-mri {__version__} on {now()[:10]}.", "",
        "## Motivation", "", _UNKNOWN, "",
        "## Composition", "",
        f"{totals['volumes']} volumes, {totals['slices']} slices, {totals['subjects']} subjects; "
        f"{facts.synthetic} volumes are synthetic.", "",
    ]  # fmt: skip
    for name, rows in facts.groups.items():
        parts += _table((name, "volumes", "slices", "subjects"), rows)
    cohort = facts.cohort
    if cohort is not None:
        parts += [f"Frozen as cohort `{cohort.name}`, SHA-256 `{cohort.digest}`.", ""]
        for removal in cohort.removals:
            parts += [
                f"Changed {removal.when}: {removal.volumes} volumes of withdrawn patients were "
                f"removed; before, its SHA-256 was `{removal.digest_before}`.",
                "",
            ]
    parts += ["## Collection and consent", ""]
    for source in facts.sources:
        ethics = source.facts.ethics
        title = source.facts.title or "title not known"
        parts.append(f"- {source.name} ({title}): ethics and consent {ethics}.")
    parts += ["", "## De-identification", "", _HEADERS, ""]
    parts += ["## Splits", "", "By patient, from a keyed hash; they never change.", ""]
    parts += ["## Licences", "", f"As a whole: `{facts.mixture.licence}`.", ""]
    parts += [f"- {limit}" for limit in facts.mixture.limits() or ["No restriction is known."]]
    parts += ["", *_table(("source", "licence", "agreement", "version"), _terms(facts))]
    parts += ["## Maintenance", ""]
    parts += [
        f"Patients withdrawn from the registry so far: {facts.withdrawals}. Withdrawn patients "
        "leave every cohort; copies made before have to be deleted by who holds them. "
        "Contact: not known to the registry.",
        "",
    ]
    parts += ["## Known limits", "", *(f"- {limit}" for limit in _LIMITS), ""]
    parts += ["## Citation", ""]
    for source in facts.sources:
        parts.append(f"- {source.name}: {source.facts.citation} (DOI {source.facts.doi})")
    return "\n".join(parts) + "\n"


def describe(facts: Facts, files: Sequence[File]) -> dict[str, Any]:
    """The Croissant document."""
    cited = [f"{s.name}: {s.facts.citation}" for s in facts.sources if _is_known(s.facts.citation)]
    ethics = "; ".join(f"{s.name}: {s.facts.ethics}" for s in facts.sources)
    return croissant(
        name=facts.name,
        description=_sentence(facts),
        version="1.0.0",
        published=now()[:10],
        licences=sorted({source.licence for source in facts.sources}),
        citation="; ".join(cited),
        files=files,
        rai={
            "dataCollection": f"Scans of the sources {', '.join(facts.mixture.sources)}. Ethics "
            f"and consent as published: {ethics}.",
            "dataPreprocessingProtocol": "Stored without loss on the grid of the scan; slices "
            "along the axis of largest spacing.",
            "dataBiases": _LIMITS[1],
            "dataLimitations": f"{_LIMITS[0]} {_LIMITS[2]}",
            "personalSensitiveInformation": f"Health data of people. {_HEADERS}",
            "dataReleaseMaintenancePlan": f"{facts.withdrawals} patients were withdrawn so far; "
            "who holds a copy has to follow later withdrawals.",
        },
    )


def _sentence(facts: Facts) -> str:
    regions = [str(row[0]) for row in facts.groups["region"] if row[0] != "unknown"]
    shown = ", ".join(regions[:8]) + (" and others" if len(regions) > 8 else "")
    return (
        f"Magnetic resonance imaging of {facts.totals['subjects']} subjects: "
        f"{facts.totals['volumes']} volumes, {shown or 'regions unknown'}."
    )


def _front_matter(facts: Facts) -> list[str]:
    whole = facts.mixture.licence
    simple = " " not in whole and not whole.startswith("LicenseRef-") and facts.mixture.terms.known
    licence = [f"license: {whole.lower()}"] if simple else ["license: other"]
    licence += [] if simple else [f"license_name: {json.dumps(whole)}"]
    slices = facts.totals["slices"]
    edges = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
    size = next((name for edge, name in edges if slices < edge), "1M<n<10M")
    size = "10M<n<100M" if slices >= 10**7 else size
    return [
        "---",
        *licence,
        f"pretty_name: {json.dumps(facts.name)}",
        f"size_categories: [{json.dumps(size)}]",
        "tags: [mri, medical-imaging, croissant]",
        "---",
    ]


def _terms(facts: Facts) -> list[tuple[str, str, str, str]]:
    return [
        (s.name, s.licence, f"{s.facts.agreement.name}, version {s.facts.agreement.version}",
         s.facts.version)
        for s in facts.sources
    ]  # fmt: skip


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = (str(cell).replace("|", "/") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _is_known(text: str) -> bool:
    return text not in ("", "not stated", "not checked")


def _shards(registry: Registry, where: str) -> list[File]:
    rows = registry.rows(
        "SELECT DISTINCT shard, size, sha256 FROM shards WHERE shard IN "
        f"(SELECT shard FROM volumes WHERE {where}) ORDER BY 1"
    )
    return [
        File(path=f"shards/{shard}", form="application/x-hdf5", size=size, sha256=sha256)
        for shard, size, sha256 in rows
    ]


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f"{PARTIAL}{path.name}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
