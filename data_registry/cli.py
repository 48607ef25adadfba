"""`core-mri data`: ingest scans, and look at what a registry holds."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from core_mri.errors import ConfigError
from data_registry.export import Format, Release
from data_registry.layouts.detect import Layout
from data_registry.looking.cli import noncommercial_line, stats_table
from data_registry.terminal import parse, progress, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from data_registry.ingest import IngestReport
    from data_registry.source_list import Source

VERBS: dict[str, tuple[str, str]] = {
    "sources": ("data_registry.sources_cli:main", "list data sets whose folders are understood"),
    "ingest": ("data_registry.cli:ingest_main", "read scans into a registry, de-identified"),
    "stats": ("data_registry.looking.cli:stats_main", "count what a registry holds"),
    "ls": ("data_registry.looking.cli:ls_main", "list the volumes of a registry"),
    "query": ("data_registry.looking.cli:query_main", "ask with SQL, and freeze cohorts"),
    "inspect": ("data_registry.looking.cli:inspect_main", "draw contact sheets of volumes"),
    "export": ("data_registry.cli:export_main", "write files that other programs read"),
    "plan": (
        "data_registry.planning.plan_cli:main",
        "choose a corpus from an index of public scans",
    ),
    "similarity": ("data_registry.similarity.cli:main", "how like a task is to pretraining data"),
    "statistics": (
        "data_registry.similarity.statistics_cli:main",
        "keep what weights saw beside them, for whoever has the weights alone",
    ),
    "repair": ("data_registry.cli:repair_main", "find damaged shards, give up what is lost"),
    "label": ("data_registry.labels_cli:main", "show what labels were told from; label anew"),
    "dedupe": ("data_registry.dedupe_cli:main", "find people who are there under several subjects"),
    "withdraw": ("data_registry.governance.withdraw_cli:main", "take a patient out, for good"),
    "audit": ("data_registry.governance.audit_cli:main", "who changed or released what, and when"),
    "share": ("data_registry.governance.share_cli:main", "signed links for users who agreed"),
    "card": ("data_registry.governance.card_cli:main", "dataset card and Croissant metadata"),
    "deidentify": (
        "data_registry.deidentify.cli:main",
        "copy scans with de-identified, verified headers",
    ),
    "verify": (
        "data_registry.deidentify.verify_cli:main",
        "search outputs for what identified the originals",
    ),
    "review": (
        "data_registry.deidentify.review_cli:main",
        "look at de-identified volumes, and record what was seen",
    ),
}
"""Verb -> ("module:function", one line of help). The function takes the words after the verb."""


@dataclass(frozen=True, kw_only=True)
class _Ingest:
    """Read scans of every known format into a registry: checked, labeled, de-identified.

    Running it again adds nothing. What cannot be read is quarantined with its reason and counted.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders or files (not with --sources)."""
    registry: Path
    """Folder of the registry; made when it does not exist."""
    spacing_mm: tuple[float, float, float] | None = None
    """Distance of columns, rows and slices in pictures and .npy files, which state none."""
    source: str = ""
    """Name of the source of PATH..., such as the hospital or the data set. A BIDS data set has a
    name and a licence of its own."""
    licence: Annotated[str, tyro.conf.arg(aliases=["--license"])] = ""
    """Its licence: an SPDX id (CC-BY-4.0), LicenseRef-NAME, or unknown."""
    subject: str = ""
    """Regular expression with a group (?P<subject>...) that finds the patient in a path."""
    layout: Layout = "auto"
    """How a labelled data set lists its cases: nnU-Net raw, Medical Segmentation Decathlon, MONAI
    data list, MRI-CORE's PNG lists, or pairs by name; auto sees it from the files, none takes every
    file for itself."""
    pairs: str = ""
    """Images and label maps that belong together: 'images/*.nii.gz=labels/*_seg.nii.gz', where * is
    the same text on both sides; several sequences: 't1:*/t1.nii.gz,t2:*/t2.nii.gz=*/seg.nii.gz'."""
    label_names: tuple[str, ...] = ()
    """Structure of each label value, such as 1=liver 2=spleen, where the layout tells none."""
    fold: int | None = None
    """Fold of a data list that is kept out of training."""
    sources: str = ""
    """Instead of PATH...: a source list (YAML file, or the name of a packaged one), or with --root
    a source card (YAML file, or a name that `core-mri data sources` lists)."""
    root: Path | None = None
    """For a source card: the downloaded folder of its data set."""
    key_file: Path | None = None
    """Project key of all ids; default REGISTRY.key beside it, made at the first ingest."""
    jobs: int = 0
    """Worker processes; 0 takes all cores."""
    ray: str = ""
    """Address of a Ray cluster that reads instead, HOST:PORT; all its machines must see the sources
    and the registry under the same paths, and get the project key. `local` starts one here."""
    strict: bool = False
    """Exit with 1 when anything is quarantined."""
    retry: bool = False
    """Look again at quarantined files that have not changed."""
    json: bool = False
    """Print a JSON object."""
    private_log: Path | None = None
    """Write which file each keyed id stands for, with the reason in full. Names patients."""


@dataclass(frozen=True, kw_only=True)
class _Export:
    """Write volumes of a registry as files that other programs read.

    Interrupted, the same command goes on where it was.
    """

    format: Annotated[Format, tyro.conf.Positional]
    """nifti and bids hold images and label maps; nnunet and monai images, each with its label map;
    webdataset slices of images; fastmri and ismrmrd raw data."""
    registry: Path
    """Folder of the registry."""
    out: Path
    """Folder to write; new or empty."""
    where: str = ""
    """SQL condition on the columns, such as "region = 'knee' and split = 'train'"."""
    cohort: str = ""
    """Only the volumes of a frozen cohort."""
    release: Release = "restricted"
    """public refuses volumes that were not de-identified for it and looked at by a person."""
    reviewed: tuple[Path, ...] = ()
    """For public: the folders of `core-mri data deidentify` that were reviewed and ingested."""
    key_file: Path | None = None
    """For public: the project key; REGISTRY.key beside the registry when not given."""
    exclude_noncommercial: bool = False
    """Leave out sources whose licence does not permit commercial use in so many words."""
    json: bool = False
    """Print a JSON object."""


@dataclass(frozen=True, kw_only=True)
class _Repair:
    """Read all shards, find what is missing or damaged, and retire the volumes that are lost.

    Ingesting their sources again restores them. Whole volumes of damaged shards stay.
    """

    registry: Path
    """Folder of the registry."""
    dry_run: bool = False
    """Only tell, and exit with 1 when anything is lost or damaged."""
    json: bool = False
    """Print a JSON object."""


def main(arguments: Sequence[str]) -> int:
    """Run one verb of `core-mri data`.

    Args:
        arguments: Words after ``core-mri data``.

    Returns:
        The exit code.
    """
    words = list(arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_help(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    verbs = _available()
    if words[0] not in verbs:
        import difflib

        close = difflib.get_close_matches(words[0], verbs, n=1)
        raise ConfigError(
            "CONFIG-01",
            f"no verb {words[0]!r}; there are {', '.join(verbs)}.",
            fix=f"Perhaps you meant {close[0]!r}." if close else "",
        )
    module, _, function = verbs[words[0]][0].partition(":")
    run: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), function)
    return run(words[1:])


def ingest_main(arguments: Sequence[str]) -> int:
    """`core-mri data ingest`."""
    from data_registry.catalogue import Registry
    from data_registry.ingest import IngestConfig, ingest
    from data_registry.source_list import load_sources

    options = parse(_Ingest, arguments, "ingest")
    told: tuple[str, ...] = ()
    if bool(options.sources) == bool(options.paths):
        raise ConfigError(
            "CONFIG-05",
            "give either PATH... with --source and --licence, or --sources NAME.",
        )
    if options.sources:
        of_paths = (
            *(options.source, options.licence, options.subject, options.spacing_mm),
            *(options.pairs, options.label_names, options.layout != "auto"),
        )
        if any(of_paths) or options.fold is not None:
            raise ConfigError(
                "CONFIG-05",
                "--source, --licence, --subject, --spacing-mm, --layout, --pairs, --label-names "
                "and --fold belong to PATH..., not to --sources.",
            )
        sources = load_sources(options.sources, options.root)
    else:
        if options.root is not None:
            raise ConfigError("CONFIG-05", "--root belongs to --sources, not to PATH....")
        sources, told = _sources_of_paths(options)
    config = IngestConfig(
        registry=options.registry,
        sources=sources,
        key_file=options.key_file,
        jobs=options.jobs,
        private_log=options.private_log,
        retry=options.retry,
        ray=options.ray,
    )
    with progress() as on_progress:
        report = ingest(config, on_progress)
    stats = Registry.open(options.registry).stats()
    if options.json:
        layouts = {"layouts": list(told)} if told else {}
        print(json.dumps({**report.to_mapping(), **layouts, "registry": stats}, indent=2))
    else:
        print("".join(f"{line}\n" for line in told), end="")
        _show_report(report)
        print(stats_table(options.registry, stats))
        print(f"\nNext: core-mri data ls --registry {options.registry}")
    if options.strict and report.quarantined:
        print(
            f"core-mri: {sum(report.quarantined.values())} quarantined, and --strict was given.",
            file=sys.stderr,
        )
        return 1
    return 0


def _sources_of_paths(options: _Ingest) -> tuple[tuple[Source, ...], tuple[str, ...]]:
    """Sources of PATH..., and what the lists of labelled data sets among them told."""
    from data_registry.import_bids import bids_sources, is_bids
    from data_registry.layouts.as_sources import Choices
    from data_registry.layouts.detect import Asked, sources_in
    from data_registry.source_list import Source

    asked = Asked(
        layout=options.layout, pairs=options.pairs, label_names=_label_names(options.label_names)
    )
    sources: tuple[Source, ...] = ()
    lines: tuple[str, ...] = ()
    for path in options.paths:
        if asked.layout == "auto" and not asked.pairs and is_bids(path):
            given = {"name": options.source, "licence": options.licence}
            sources += bids_sources(path, **given, subject=options.subject)
            continue
        if not options.source or not options.licence:
            raise ConfigError(
                "CONFIG-01",
                "PATH... needs --source NAME and --licence SPDX.",
                fix="LicenseRef-NAME means a text of your own; unknown is never exported.",
            )
        choices = Choices(
            name=options.source,
            licence=options.licence,
            subject=options.subject,
            fold=options.fold,
            spacing_mm=options.spacing_mm,
        )
        with progress("checking label maps") as on_progress:
            told = sources_in(path, asked, choices, on_progress)
        if told is not None:
            sources += told.sources
            lines += told.lines
            continue
        if asked.label_names or options.fold is not None:
            raise ConfigError(
                "CONFIG-05", f"{path} has no layout to which --label-names or --fold belong."
            )
        sources += (
            Source(
                name=options.source,
                licence=options.licence,
                root=str(path),
                role="by-name",
                subject=options.subject,
                spacing_mm=options.spacing_mm,
            ),
        )
    return sources, lines


def _label_names(pairs: Sequence[str]) -> dict[int, str]:
    """``1=liver`` ... by value."""
    from data_registry.layouts.labelled_set import plain_name

    names: dict[int, str] = {}
    for pair in pairs:
        value, equals, name = pair.partition("=")
        if not value.isdigit() or int(value) == 0 or not equals or int(value) in names:
            raise ConfigError(
                "CONFIG-01", f"--label-names {pair!r}: expected VALUE=NAME, each value once."
            )
        names[int(value)] = plain_name(Path("--label-names"), name)
    return names


def export_main(arguments: Sequence[str]) -> int:
    """`core-mri data export`."""
    from data_registry.export import ExportConfig, export

    options = parse(_Export, arguments, "export")
    config = ExportConfig(
        registry=options.registry,
        out=options.out,
        format=options.format,
        where=options.where,
        cohort=options.cohort,
        release=options.release,
        reviewed=options.reviewed,
        key_file=options.key_file,
        exclude_noncommercial=options.exclude_noncommercial,
    )
    with progress("writing files") as on_progress:
        report = export(config, on_progress)
    if options.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
        return 0
    print(f"{report.written} files written to {options.out}, {report.kept} were there already.")
    if report.other_roles:
        print(f"{report.other_roles} volumes left out, which {options.format} cannot hold.")
    if report.noncommercial:
        print(noncommercial_line(report.noncommercial))
    print(f"licence {report.licence}, terms in {options.out / 'LICENSE'}")
    print(f"\nNext: {options.out / 'manifest.csv'} says what each file is.")
    return 0


def repair_main(arguments: Sequence[str]) -> int:
    """`core-mri data repair`."""
    from data_registry.catalogue import Registry
    from data_registry.repair import repair

    options = parse(_Repair, arguments, "repair")
    registry = Registry.open(options.registry)
    with progress("reading shards") as on_progress:
        report = repair(registry, dry_run=options.dry_run, on_progress=on_progress)
    if options.json:
        print(json.dumps(report.to_mapping(), indent=2))
    else:
        print(f"{report.intact} of {report.shards} shards are intact.")
        lost = Counter(report.lost.values())
        lines = [(shard, what, str(lost[shard])) for shard, what in report.damaged.items()]
        if lines:
            print(table("Damaged", ("shard", "is", "volumes lost"), lines))
            print(f"{len(report.lost)} volumes lost, {report.kept} others of these shards whole.")
        for volume_id in report.lost:
            print(f"  lost {volume_id}")
        if report.lost and not options.dry_run:
            print(
                f"\nNext: ingest the sources again: {report.files_to_read} files are read, and "
                "what they hold is stored anew."
            )
    return 1 if options.dry_run and report.damaged else 0


def _available() -> dict[str, tuple[str, str]]:
    """The verbs whose module is installed."""
    return {
        verb: (entry, line)
        for verb, (entry, line) in VERBS.items()
        if importlib.util.find_spec(entry.partition(":")[0]) is not None
    }


def _help() -> str:
    verbs = "\n".join(f"  {verb:<12}{line}" for verb, (_, line) in _available().items())
    return (
        "core-mri data VERB --registry DIR ...: which scans exist, from where, for what.\n\n"
        f"{verbs}\n\ncore-mri data VERB --help lists the flags of a verb."
    )


def _show_report(report: IngestReport) -> None:
    lines = [
        ("files found", report.files),
        ("known and unchanged", report.files_known),
        ("volumes added", report.volumes_added),
        ("slices added", report.slices_added),
        ("volumes known already", report.volumes_known),
        ("volumes replaced", report.volumes_retired),
        ("possible duplicates of another patient", report.possible_duplicates),
        ("series UIDs shared by several patients", report.shared_series),
        ("quarantined", sum(report.quarantined.values())),
        ("files left out by the source list", sum(report.left_out.values())),
    ]
    always = {"files found", "volumes added", "quarantined"}
    shown = [(name, str(count)) for name, count in lines if count or name in always]
    print(table("Ingest", ("", "count"), shown))
    if report.left_out:
        print(f"  left out: {', '.join(f'{n} x {kind}' for kind, n in report.left_out.items())}")
    for reason, ids in report.examples.items():
        more = ", ..." if report.quarantined[reason] > len(ids) else ""
        print(f"  {report.quarantined[reason]} x {reason}: {', '.join(ids)}{more}")
