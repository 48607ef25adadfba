"""`core-mri evaluate` for reconstruction: files x sources x undersampling, scored as fastMRI does.

Scores are taken per volume and given per acquisition (contrast) and acceleration; images are left
as the leaderboard reads them, ``submissions/SOURCE-RATEx/reconstructions/FILE.h5``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from core_mri.config import to_mapping
from core_mri.errors import ConfigError, CoreMRIError, DataError, Interrupted
from core_mri.files.kspace import read_kspace
from core_mri.metrics import bootstrap_interval
from core_mri.reports import Report
from core_mri.runs import Run
from downstream.evaluation.results import Outcome, Score, load_outcome, save_outcome, write_results
from downstream.evaluation.summary import SummaryRow
from downstream.reconstruction.config import (
    MaskName,
    ReconstructConfig,
    Source,
    names_weights,
)
from downstream.reconstruction.network import weights_hash
from downstream.reconstruction.scores import volume_scores
from downstream.reconstruction.stream import Scan, reconstruct_file

log = logging.getLogger(__name__)

_UNITS = {"NMSE": "1", "PSNR": "dB", "SSIM": "1", "residual": "1"}
_SUFFIXES = (".h5", ".hdf5", ".npy", ".dat")


@dataclass(frozen=True, kw_only=True)
class Undersampling:
    """One setting of fastMRI's masks."""

    acceleration: float = 4.0
    """1 or more."""
    center_fraction: float = 0.08
    """Part of the lines that is kept at the center."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionSuite:
    """Reconstructions of raw data files, classical and by networks, in one table."""

    kspace: tuple[Path, ...]
    """Raw data files, or folders of them."""
    out: Path
    """Output folder; finished volumes of an earlier start are kept."""
    sources: tuple[str, ...] = ("zero-filled", "cg-sense", "tv", "wavelet")
    """What competes: names of `core-mri reconstruct`, and weights, called after their folder or
    file, or as ``NAME=WEIGHTS`` says."""
    undersampling: tuple[Undersampling, ...] = (
        Undersampling(),
        Undersampling(acceleration=8.0, center_fraction=0.04),
    )
    """Settings for fully sampled files; a mask in a file wins."""
    mask: MaskName | Literal["auto"] = "auto"
    """auto is fastMRI's choice: random for knees, equispaced_fraction for everything else."""
    seed: int = 0
    """Of the intervals; masks are seeded by the file name, as fastMRI's are."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        named = self.named_sources
        wrong = sorted(
            source
            for source in named.values()
            if source not in get_args(Source) and not names_weights(source)
        )
        if wrong or not self.sources or not self.undersampling or not self.kspace:
            raise ConfigError(
                "CONFIG-05",
                "a suite needs kspace, undersampling, and sources: weights, or some of "
                f"{', '.join(get_args(Source))}" + (f"; got {', '.join(wrong)}." if wrong else "."),
            )
        if len(named) < len(self.sources):
            raise ConfigError(
                "CONFIG-05",
                f"sources: two of {', '.join(self.sources)} have one name.",
                fix="Write NAME=WEIGHTS.",
            )

    @property
    def named_sources(self) -> dict[str, str]:
        """Name in tables and folders -> source."""
        named = {}
        for source in self.sources:
            name, _, weights = source.partition("=")
            given = weights and not set(name) & set("/:")
            named[name if given else _short(source)] = weights if given else source
        return named


def _short(source: str) -> str:
    """The last part of a path that says something."""
    scheme, _, rest = source.rpartition(":")
    path = Path(rest).with_suffix("") if scheme else Path(rest)
    parts = [part for part in path.parts if part not in ("weights", "/", "..")]
    return parts[-1] if parts else source


@dataclass
class _Cell:
    """One file by one source at one rate."""

    path: Path
    name: str
    """Of the source."""
    config: ReconstructConfig
    rate: str
    patient: str
    """File name of the first volume of this patient."""
    key: str = field(init=False)

    def __post_init__(self) -> None:
        facts = self.path.stat()
        what = {**to_mapping(self.config), "bytes": facts.st_size, "time": facts.st_mtime_ns}
        if self.config.is_network:
            what["sha256"] = weights_hash(self.config.source)
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        self.key = f"{self.name}-{self.rate}-{self.path.stem}-{digest[:16]}"


def evaluate_reconstruction(suite: ReconstructionSuite, *, resume: bool = False) -> Path:
    """Run a suite.

    Args:
        suite: What to do.
        resume: Demand that the folder holds an earlier start.

    Returns:
        The folder with ``results.json``, ``results.csv``, ``report.html`` and ``submissions/``.

    Raises:
        ConfigError: The output folder holds something else.
        DataError: DATA-01 when there is no file.
    """
    paths = _files(suite)
    with Run.open(suite.out, suite, resume=resume) as run:
        outcomes = []
        for cell in _cells(suite, paths):
            kept = load_outcome(suite.out / "cells", cell.key)
            if kept is None or not cell.config.out.exists():
                if run.stop_requested:
                    raise Interrupted(f"{suite.out}: run the same command again to go on.")
                kept = _run(cell, suite)
                save_outcome(kept, suite.out / "cells")
            outcomes.append(kept)
        rows = _summary(outcomes, suite.seed)
        report = _report(suite, outcomes, rows)
        write_results(suite.out, outcomes, rows, report.verdict)
        report.write(suite.out / "report.html")
    return suite.out


def _files(suite: ReconstructionSuite) -> list[Path]:
    found: list[Path] = []
    for path in suite.kspace:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
        else:
            found.append(path)
    missing = [str(path) for path in found if not path.is_file()]
    if missing or not found:
        names = ", ".join(missing or map(str, suite.kspace))
        raise DataError("DATA-01", f"{names}: no raw data there.")
    return found


def _cells(suite: ReconstructionSuite, paths: list[Path]) -> Iterator[_Cell]:
    patients: dict[object, str] = {}
    for path in paths:
        own, acquisition, patient = False, "", path.stem
        # A file that cannot be read fails in its cells, where the error is recorded.
        with suppress(CoreMRIError), read_kspace(path) as kspace:
            mask, acquisition = kspace.mask(), kspace.header.acquisition
            own = mask is not None and not mask.all()
            stated = kspace.header.facts.get("PatientID")
            patient = patients.setdefault(stated, patient) if stated else patient
        kind: MaskName = (
            suite.mask
            if suite.mask != "auto"
            else "random"
            if acquisition.startswith("COR")
            else "equispaced_fraction"
        )
        for setting in suite.undersampling[:1] if own else suite.undersampling:
            rate = "own" if own else f"{setting.acceleration:g}x"
            for name, source in suite.named_sources.items():
                folder = suite.out / "submissions" / f"{name}-{rate}" / "reconstructions"
                config = ReconstructConfig(
                    source=source,
                    kspace=path,
                    out=folder / f"{path.stem}.h5",
                    mask=None if own else kind,
                    acceleration=setting.acceleration,
                    center_fraction=setting.center_fraction,
                    device=suite.device,
                )
                yield _Cell(path, name, config, rate, patient)


def _run(cell: _Cell, suite: ReconstructionSuite) -> Outcome:
    log.info("%s by %s, %s", cell.path.name, cell.name, cell.rate)
    base = Outcome(key=cell.key, task=cell.rate, weights=cell.name, against="", k=0, draw=0)
    try:
        scan = reconstruct_file(cell.config)
    except CoreMRIError as error:
        log.warning("failed: %s", error)
        return Outcome(**{**vars(base), "error": str(error)})
    acquisition = scan.header.acquisition or "other"
    stated = scan.header.acceleration
    own = stated if stated > 1 else round(scan.sampling.acceleration)
    rate = f"{own:g}x" if cell.rate == "own" else cell.rate
    task = f"{acquisition} {rate}"
    found = {} if scan.reference is None else volume_scores(scan.reference, scan.images)
    residuals = [r for r in scan.residuals if r is not None]
    if residuals:
        found["residual"] = float(np.mean(residuals))
    scores = tuple(
        Score(
            task=task, weights=cell.name, twin=False, method=_method(scan), k=0,
            draw=0, seed=suite.seed, patient=cell.patient, structure=cell.path.stem,
            metric=metric, value=value, unit=_UNITS[metric],
        )
        for metric, value in found.items()
    )  # fmt: skip
    scored = scan.reference is not None
    notes = () if scored else (f"{cell.path.name} has no reference: no score.",)
    return Outcome(
        **{**vars(base), "task": task, "scores": scores, "notes": notes,
           "cpu_seconds": float(np.mean(scan.cpu_s))}
    )  # fmt: skip


def _method(scan: Scan) -> str:
    return "simulated undersampling" if scan.sampling.drawn else "as acquired"


def _summary(outcomes: list[Outcome], seed: int) -> list[SummaryRow]:
    """Means over patients, after the volumes of each."""
    cells: dict[tuple[str, str, str, str], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for outcome in outcomes:
        for score in outcome.scores:
            if score.value is not None:
                key = (score.task, score.weights, score.method, score.metric)
                cells[key][score.patient].append(score.value)
    rows = []
    for (task, source, method, metric), patients in sorted(cells.items()):
        interval = bootstrap_interval([float(np.mean(v)) for v in patients.values()], seed=seed)
        rows.append(
            SummaryRow(
                task=task, weights=source, method=method, k=0, metric=metric, unit=_UNITS[metric],
                mean=interval.mean,
                n=interval.n, ci_low=interval.low, ci_high=interval.high,
            )
        )  # fmt: skip
    return rows


def _report(suite: ReconstructionSuite, outcomes: list[Outcome], rows: list[SummaryRow]) -> Report:
    volumes = len({s.structure for o in outcomes for s in o.scores if s.metric == "SSIM"})
    failed = [o for o in outcomes if o.error]
    best: dict[str, SummaryRow] = {}
    for row in rows:
        if row.metric == "SSIM" and (row.task not in best or row.mean > best[row.task].mean):
            best[row.task] = row
    leaders = "; ".join(f"{task}: {row.weights}, SSIM {row.mean:.4f}" for task, row in best.items())
    verdict = f"{volumes} volumes scored. Best by SSIM: {leaders or 'none could be scored'}."
    report = Report("Reconstruction", verdict, "Scored as fastMRI scores; not for diagnosis.")
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for outcome in outcomes:
        if not outcome.error:
            seconds[outcome.task, outcome.weights].append(outcome.cpu_seconds)
    by_source: dict[tuple[str, str, str], dict[str, SummaryRow]] = defaultdict(dict)
    for row in rows:
        by_source[row.task, row.weights, row.method][row.metric] = row
    table = []
    for (task, source, method), found in by_source.items():
        line: dict[str, str | int | float | bool | None] = {
            "acquisition, rate": task, "source": source, "data": method,
            "patients": max(row.n for row in found.values()),
        }  # fmt: skip
        for metric, row in found.items():
            line[metric] = row.mean
            line[f"{metric} 95 %"] = (
                "" if math.isnan(row.ci_low) else f"{row.ci_low:.4f} to {row.ci_high:.4f}"
            )
        line["CPU s a slice"] = float(np.mean(seconds[task, source]))
        table.append(line)
    if table:
        report.add_table(
            "Scores",
            table,
            "Means over patients of volume scores, 95 % bootstrap intervals. Residual: "
            "|M F S x - y| / |y| over the measured samples, whose noise is in it; small is no "
            "proof.",
        )
    if failed:
        report.add_table("Failed", [{"cell": o.key, "error": o.error} for o in failed])
    unscored = sorted({note for o in outcomes for note in o.notes})
    if unscored:
        report.add_text("Not scored", unscored)
    report.add_facts(
        "Protocol",
        {
            "masks": suite.mask,
            "seeds": "code points of the file name",
            "cropped to": "the square of the reference's width",
            "data range": "largest value of the reference volume",
        },
    )
    return report
