"""From a labelled data set to sources of a registry: who the patients are, and in which split."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core_mri.errors import ConfigError
from data_registry.layouts.labelled_set import Case, LabelledSet, Part, broken, some
from data_registry.schema import Split
from data_registry.source_files import Listed
from data_registry.source_list import Source


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the caller adds to what a data set says of itself."""

    name: str
    """Of the source."""
    licence: str
    subject: str = ""
    """Regular expression with a group ``subject``, searched in the path of the label map or first
    image; instead of the layout's rule."""
    fold: int | None = None
    """Fold that is kept out of training: validation where there are labelled test cases, else
    test."""
    spacing_mm: tuple[float, float, float] | None = None
    """Of pictures; unknown when None."""


@dataclass(frozen=True)
class Told:
    """What was made of a data set, for the caller to read."""

    sources: tuple[Source, ...]
    lines: tuple[str, ...]
    """Sentences: cases, channels, structures, patients, splits."""


def told(data: LabelledSet, choices: Choices) -> Told:
    """The sources of a data set.

    Raises:
        ConfigError: CONFIG-01 for a wrong `subject`, CONFIG-05 when the data set states another
            licence, or no case is in the fold.
        DataError: DATA-27 when the cases of a patient are in two parts.
    """
    from data_registry.import_bids import licence_of

    stated = licence_of(data.licence)
    if stated and not stated.startswith("sha256:") and stated != choices.licence:
        raise ConfigError(
            "CONFIG-05",
            f"{data.listing} states licence {stated}, and {choices.licence} was given.",
            fix=f"Give --licence {stated}, or correct the file.",
        )
    folds = {case.fold for case in data.cases} - {None}
    if choices.fold is not None and choices.fold not in folds:
        raise ConfigError(
            "CONFIG-05",
            f"{data.listing} has no fold {choices.fold}; it has {some(map(str, folds)) or 'none'}.",
            fix="Leave --fold out, or give one of them.",
        )
    patient_of, rule = _patients(data, choices.subject)
    patients = {case.name: patient_of(case) for case in data.cases}
    parts = {case.name: _part(case, data, choices.fold) for case in data.cases}
    _apart(data, patients, parts)
    splits, sentence = _splits(data, parts)
    images: dict[str, Listed] = {}
    labels: dict[str, Listed] = {}
    for case in data.cases:
        common = {
            "patient": patients[case.name],
            "case": case.label or case.images[0],
            "split": splits[parts[case.name]],
        }
        for number, path in enumerate(case.images):
            own = data.channels if len(case.images) == 1 else data.channels[number : number + 1]
            images[path] = Listed(channels=own, **common)  # type: ignore[arg-type]
        if case.label:
            labels[case.label] = Listed(**common)  # type: ignore[arg-type]
    facts: dict[str, Any] = {
        "name": choices.name,
        "licence": choices.licence,
        "root": str(data.root),
        "spacing_mm": choices.spacing_mm,
        "unknown_spacing": choices.spacing_mm is None,
    }
    sources = [Source(listed=images, **facts)]
    if labels:
        sources.append(
            Source(
                listed=labels,
                role="label",
                label_values=data.label_names,
                label_regions=data.label_regions,
                **facts,
            )
        )
    num_patients = len(set(patients.values()))
    structures = [*data.label_names.values(), *data.label_regions]
    return Told(
        tuple(sources),
        (
            f"layout {data.layout}: {len(data.cases)} cases of {num_patients} patients, "
            f"{len(labels)} label maps, as {data.listing} tells.",
            f"sequences: {', '.join(data.channels) or 'not told'}; structures: "
            f"{', '.join(structures) or 'not told, give --label-names 1=NAME ...'}.",
            rule,
            sentence,
        ),
    )


def _patients(data: LabelledSet, subject: str) -> tuple[Callable[[Case], str], str]:
    """Who the patient of a case is, and the sentence that says so."""
    if subject:
        pattern = _pattern(subject)

        def by_subject(case: Case) -> str:
            found = pattern.search(case.label or case.images[0])
            if found is None or not found["subject"]:
                raise ConfigError(
                    "CONFIG-01",
                    f"--subject {subject!r} finds nobody in {case.label or case.images[0]}.",
                    fix="It must match the path of every label map.",
                )
            return found["subject"]

        return by_subject, f"patients: from paths, by {subject}."
    used: dict[str, int] = {}
    found: dict[str, str] = {}
    for case in data.cases:
        matches = ((rule, re.match(rule, case.name)) for rule in data.patient_patterns)
        rule, match = next((pair for pair in matches if pair[1]), ("", None))
        found[case.name] = match["subject"] if match else case.name
        used[rule] = used.get(rule, 0) + 1
    sentences = [f"{count} cases by {rule}" for rule, count in used.items() if rule]
    if "" in used:
        sentences.append(f"{used['']} cases taken for a patient each")
    return (lambda case: found[case.name]), (
        f"patients: {', '.join(sentences)}; where that is wrong, give --subject '(?P<subject>...)'."
    )


def _pattern(subject: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(subject)
    except re.error as error:
        raise ConfigError(
            "CONFIG-01", f"--subject {subject!r} is no regular expression: {error}."
        ) from None
    if "subject" not in pattern.groupindex:
        raise ConfigError(
            "CONFIG-01",
            f"--subject {subject!r} has no group named subject.",
            fix="For example (?P<subject>case[0-9]+).",
        )
    return pattern


def _part(case: Case, data: LabelledSet, fold: int | None) -> Part:
    if fold is None or case.fold != fold or case.part != "training":
        return case.part
    return "validation" if _has_test(data) else "test"


def _has_test(data: LabelledSet) -> bool:
    return any(case.part == "test" and case.label for case in data.cases)


def _apart(data: LabelledSet, patients: Mapping[str, str], parts: Mapping[str, Part]) -> None:
    first: dict[str, Case] = {}
    for case in data.cases:
        other = first.setdefault(patients[case.name], case)
        if parts[other.name] != parts[case.name]:
            raise broken(
                data.listing,
                f"patient {patients[case.name]!r} is in two splits: {other.images[0]} in "
                f"{parts[other.name]}, {case.images[0]} in {parts[case.name]}",
                "Correct the list; or give --subject if these are two people.",
            )


def _splits(
    data: LabelledSet, parts: Mapping[str, Part]
) -> tuple[Mapping[Part, Split | Literal["", "not-test"]], str]:
    """Split of each part, and the sentence that says so.

    An evaluation needs labelled test patients: where the data set has them, nobody else becomes
    one; where it has none, the hash of the registry chooses among the training patients.
    """
    labelled = {parts[case.name] for case in data.cases if case.label}
    if "test" not in labelled:
        return {"training": "", "validation": "val", "test": "test"}, (
            "splits: no labelled test cases, so the hash of the registry splits the training "
            "patients into train, val and test."
        )
    if "validation" in labelled:
        return {"training": "train", "validation": "val", "test": "test"}, (
            "splits: training, validation and test as listed."
        )
    return {"training": "not-test", "validation": "val", "test": "test"}, (
        "splits: test as listed; the hash of the registry takes val from the training patients."
    )
