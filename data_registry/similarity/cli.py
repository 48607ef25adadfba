"""`core-mri data similarity`: how like a task is to what a model saw, and what to add."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_mri.errors import ConfigError
from data_registry.terminal import parse, progress, table

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.similarity.advice import Step
    from data_registry.similarity.compare import Comparison, Data
    from data_registry.similarity.features import EncoderFeatures


@dataclass(frozen=True, kw_only=True)
class _Similarity:
    """Compare the scans of a task with pretraining data, or with what weights tell of theirs.

    Features are computed once for each volume and kept in the registry, and so is every answer
    (table `similarities`). No distance comes without its numbers of slices and patients, an
    interval, and the same distance between halves of the pretraining patients.
    """

    registry: Path
    """Folder of the registry that holds the task."""
    task: tuple[str, ...] = ()
    """Frozen cohorts, see `core-mri data query --name`."""
    pretraining: str = ""
    """A frozen cohort, or a weights folder with statistics of what it saw."""
    encoder: str = ""
    """For a cohort: what embeds slices, as core_mri.load_model takes it. Radiomic features alone
    when not given. Weights are compared by their own encoder."""
    formulas: bool = True
    """Compare radiomic features too, which no network made."""
    advise: bool = False
    """Tell which registered sources would bring the pretraining data closest for a slice added."""
    plan: Path | None = None
    """With --advise: also which series of this plan of `core-mri data plan`, by metadata."""
    transfer: tuple[Path, ...] = ()
    """Instead: results.json files of `core-mri evaluate`, whose gains over random twins are set
    against the distances that the registry keeps of the same tasks and weights, by their names."""
    out: Path | None = None
    """Folder for similarity.html and similarity.json."""
    update_card: bool = False
    """Tell the model card of the weights folder."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print a JSON object."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb.

    Args:
        arguments: Words after ``core-mri data similarity``.

    Returns:
        The exit code.
    """
    from data_registry.catalogue import Registry
    from data_registry.similarity.candidates import series_to_add, sources_to_add
    from data_registry.similarity.compare import cohort_data, compare
    from data_registry.similarity.features import Radiomics
    from data_registry.similarity.history import record

    options = parse(_Similarity, arguments, "similarity")
    if options.transfer:
        return _transfer(options)
    if not options.task or not options.pretraining:
        raise ConfigError("CONFIG-01", "give --task and --pretraining, or --transfer RESULTS.json.")
    if options.plan is not None and not options.advise:
        raise ConfigError("CONFIG-05", "--plan belongs to --advise.")
    registry = Registry.open(options.registry)
    pretraining, encoder = _pretraining(registry, options)
    comparisons, advice = [], {}
    barred: dict[str, str] = {}
    for name in options.task:
        with progress("embedding volumes") as on_progress:
            found = compare(
                registry,
                cohort_data(registry, name),
                pretraining,
                encoder,
                formulas=options.formulas,
                on_progress=on_progress,
            )
        record(registry, found)
        comparisons.append(found)
        if options.advise:
            steps, barred = sources_to_add(registry, found, encoder or Radiomics())
            if options.plan is not None:
                steps += series_to_add(options.plan, found.features[0])
            advice[name] = steps
    content = _content(comparisons, advice, barred)
    if options.out is not None:
        _write(registry, comparisons, advice, content, options.out)
    if options.update_card:
        _update_card(options, comparisons)
    if options.json:
        print(json.dumps(content, indent=2))
        return 0
    _show(comparisons, advice, barred, options)
    return 0


def _pretraining(registry: Registry, options: _Similarity) -> tuple[Data, EncoderFeatures | None]:
    """The pretraining side, and the encoder to compare by."""
    from core_mri.weights import load_model
    from data_registry import cohorts
    from data_registry.similarity.compare import cohort_data, weights_data
    from data_registry.similarity.features import EncoderFeatures

    name = options.pretraining
    if name in cohorts.names(registry):
        data = cohort_data(registry, name)
        if options.update_card:
            raise ConfigError("CONFIG-05", f"--update-card: {name} is a cohort, no weights folder.")
        if not options.encoder:
            return data, None
        return data, EncoderFeatures(
            load_model(options.encoder, device=options.device), _short(options.encoder)
        )
    if not Path(name).is_dir():
        known = ", ".join(cohorts.names(registry)) or "none"
        raise ConfigError(
            "CONFIG-02",
            f"--pretraining {name}: no weights folder, and no cohort of {registry.path} (there "
            f"are: {known}).",
            fix="Freeze one with `core-mri data query --where CONDITION --name NAME`.",
        )
    if options.encoder:
        raise ConfigError("CONFIG-05", "weights are compared by their own encoder: no --encoder.")
    data = weights_data(Path(name))
    model = load_model(name, device=options.device)
    return data, EncoderFeatures(model, data.name)


def _short(source: str) -> str:
    """Name of an encoder for tables."""
    path = Path(source)
    return path.parent.name if path.name == "weights" else path.name


def _transfer(options: _Similarity) -> int:
    """Print what gains say of distances, and write the page."""
    from data_registry.catalogue import Registry
    from data_registry.similarity.transfer_report import report_transfer

    found = report_transfer(Registry.open(options.registry), options.transfer)
    if options.out is not None:
        found.page().write(options.out / "transfer.html")
    if options.json:
        print(json.dumps(found.to_mapping(), indent=2))
        return 0
    print(found.verdict)
    lines = [
        (row["metric"], row["distance"], f"{row['cells']}", f"{row['effective n']}",
         _number(row["Spearman"]), f"{_number(row['low'])} .. {_number(row['high'])}",
         _number(row["p"]), row["why not"])
        for row in found.rows()
    ]  # fmt: skip
    head = ("metric", "distance", "cells", "effective n", "Spearman", "95 % interval", "p",
            "why not")  # fmt: skip
    print(table("\nGains against distances", head, lines))
    return 0


def _content(
    comparisons: Sequence[Comparison], advice: dict[str, list[Step]], barred: dict[str, str]
) -> dict[str, Any]:
    return {
        "comparisons": [
            {
                "task": found.task.name,
                "task_sha256": found.task.digest,
                "pretraining": found.pretraining.name,
                "pretraining_sha256": found.pretraining.digest,
                "encoder": found.encoder,
                "shared_patients": list(found.shared),
                "same_voxels": found.same_voxels,
                "verdict": found.verdict,
                "distances": [dataclasses.asdict(one) for one in found.measurements],
                "by_source": [dataclasses.asdict(one) for one in found.by_source],
            }
            for found in comparisons
        ],
        "advice": {task: [step.row() for step in steps] for task, steps in advice.items()},
        "left_out_for_their_licence": barred,
    }


def _write(
    registry: Registry,
    comparisons: Sequence[Comparison],
    advice: dict[str, list[Step]],
    content: dict[str, Any],
    out: Path,
) -> None:
    from core_mri.runs import write_atomically, writing
    from data_registry.similarity.page import similarity_page

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "similarity.json", (json.dumps(content, indent=1) + "\n").encode())
    similarity_page(registry, comparisons, advice).write(out / "similarity.html")


def _update_card(options: _Similarity, comparisons: Sequence[Comparison]) -> None:
    """Replace the lines of these tasks; those of others stay."""
    from core_mri.weights.folder import find_folder, read_config, update_card

    folder = find_folder(Path(options.pretraining))
    old = read_config(folder).get("card", {}).get("similarity", [])
    new = [
        {
            "task": found.task.name, "distance": one.distance, "value": _number(one.value),
            "low": _number(one.low), "high": _number(one.high), "null": _number(one.null),
            "task patients": one.patients, "shared patients": len(found.shared),
        }
        for found in comparisons
        for one in found.measurements
        if one.distance in ("KID", "coverage", "domain AUROC") and one.value is not None
    ]  # fmt: skip
    tasks = {found.task.name for found in comparisons}
    kept = [row for row in old if row["task"] not in tasks]
    update_card(folder, {"similarity": kept + new})


def _show(
    comparisons: Sequence[Comparison],
    advice: dict[str, list[Step]],
    barred: dict[str, str],
    options: _Similarity,
) -> None:
    for found in comparisons:
        print(found.verdict)
        lines = [
            (
                one.distance, one.features, _number(one.value),
                f"{_number(one.low)} .. {_number(one.high)}" if one.value is not None else "",
                _number(one.null), _number(one.null_high),
                f"{one.slices}/{one.pretraining_slices}",
                f"{one.patients}/{one.pretraining_patients}", one.refused,
            )
            for one in found.measurements
        ]  # fmt: skip
        columns = ("distance", "features", "value", "95 % interval", "null", "farthest",
                   "slices", "patients", "why not")  # fmt: skip
        print(table(f"\n{found.task.name} and {found.pretraining.name}", columns, lines))
        sources = [
            (one.features, _number(one.value), f"{one.pretraining_slices}",
             f"{one.pretraining_patients}", one.refused)
            for one in found.by_source
        ]  # fmt: skip
        print(table("\nKID by pretraining source", ("source", "KID", "slices", "patients",
                                                    "why not"), sources))  # fmt: skip
        if found.task.name in advice:
            steps = [
                (s.candidate.name, s.candidate.licence, f"{s.candidate.slices}",
                 f"{s.candidate.patients}", s.measure, _number(s.before), _number(s.after))
                for s in advice[found.task.name]
            ]  # fmt: skip
            title = "\nWhat to add" if steps else "\nNothing at hand brings the data closer."
            head = ("add", "licence", "slices", "patients", "measure", "before", "after")
            print(table(title, head, steps))
    for name, why in barred.items():
        print(f"not advised: {name}, as {why}")
    if options.out is not None:
        print(f"\nPage: {options.out / 'similarity.html'}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
