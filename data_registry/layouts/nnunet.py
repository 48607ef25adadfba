"""nnU-Net raw (dataset.json of version 1 and 2), and the Medical Segmentation Decathlon.

Sources: nnU-Net's documentation/dataset_format.md (folders imagesTr, labelsTr, imagesTs; channels
as ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``; ``channel_names``, ``labels``, ``file_ending``,
``numTraining``, optional ``dataset``); version 1 and the Decathlon (``modality``, ``labels`` by
value, ``training``, ``test``), where the Decathlon has one file a case, 4D for several channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core_mri.errors import DataError
from data_registry.layouts.labelled_set import (
    Case,
    LabelledSet,
    below,
    broken,
    names_by_number,
    plain_name,
    read_json,
    some,
    stem,
)

DATASET = "dataset.json"


def read_nnunet(listing: Path) -> LabelledSet:
    """A folder of nnU-Net's raw format.

    Labelled cases are those of ``labelsTr``, or of the JSON's ``dataset``; ``imagesTs`` are test
    cases, labelled where there is a ``labelsTs``.

    Args:
        listing: Its ``dataset.json``.

    Raises:
        DataError: DATA-27 when file and folder contradict each other, DATA-29 when a case lacks a
            channel or has more than are named.
    """
    content = read_json(listing)
    root = listing.parent
    channels = _channels(listing, content)
    ending = str(content.get("file_ending", ".nii.gz"))
    if "dataset" in content:
        cases = _listed(listing, content["dataset"], len(channels))
    else:
        cases = _found(root, "Tr", ending, channels)
        _as_listed(listing, content, cases)
    if "numTraining" in content and content["numTraining"] != len(cases):
        raise broken(
            listing,
            f"numTraining is {content['numTraining']}, and there are {len(cases)} training cases",
            "Unpack the data set again, or correct the number.",
        )
    names, regions = structures_of(listing, content.get("labels"))
    return LabelledSet(
        layout="nnunet",
        root=root,
        listing=listing,
        cases=(*cases, *_found(root, "Ts", ending, channels)),
        channels=channels,
        label_names=names,
        label_regions=regions,
        licence=_licence(content),
    )


def read_decathlon(listing: Path) -> LabelledSet:
    """A task of the Medical Segmentation Decathlon.

    Args:
        listing: Its ``dataset.json``.

    Raises:
        DataError: DATA-27 when file and folder contradict each other.
    """
    content = read_json(listing)
    root = listing.parent
    entries = content.get("training")
    if not isinstance(entries, list):
        raise broken(listing, "has no list `training`")
    cases = []
    for entry in entries:
        if not isinstance(entry, Mapping) or not {"image", "label"} <= entry.keys():
            raise broken(listing, f"a training case needs image and label, got {entry!r}")
        image, label = (below(root, listing, entry[key]) for key in ("image", "label"))
        cases.append(Case(name=stem(image), images=(image,), label=label))
    tests = content.get("test", [])
    for path in tests if isinstance(tests, list) else []:
        image = below(root, listing, path["image"] if isinstance(path, Mapping) else path)
        cases.append(Case(name=stem(image), images=(image,), part="test"))
    if "numTraining" in content and content["numTraining"] != len(entries):
        raise broken(
            listing, f"numTraining is {content['numTraining']}, and {len(entries)} are listed"
        )
    names, regions = structures_of(listing, content.get("labels"))
    return LabelledSet(
        layout="msd",
        root=root,
        listing=listing,
        cases=tuple(cases),
        channels=_channels(listing, content),
        label_names=names,
        label_regions=regions,
        licence=_licence(content),
    )


def is_decathlon(listing: Path, content: Mapping[str, Any]) -> bool:
    """Whether a ``dataset.json`` lists whole files, rather than cases of numbered channels."""
    entries = content.get("training")
    if "channel_names" in content or not isinstance(entries, list) or not entries:
        return False
    first = entries[0].get("image") if isinstance(entries[0], Mapping) else None
    if not isinstance(first, str) or (listing.parent / first).is_file():
        return True
    numbered = (listing.parent / first).with_name(f"{stem(first)}_0000{first[len(_bare(first)) :]}")
    return not numbered.is_file()


def _bare(path: str) -> str:
    return path[: path.rindex(stem(path)) + len(stem(path))]


def _channels(listing: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    key = "channel_names" if "channel_names" in content else "modality"
    return names_by_number(listing, content.get(key), key)


def structures_of(
    listing: Path, labels: object
) -> tuple[dict[int, str], dict[str, tuple[int, ...]]]:
    """Names by value, and structures of several values; background and ignore are left out."""
    if not isinstance(labels, Mapping) or not labels:
        raise broken(listing, f'labels must be an object like {{"liver": 1}}, got {labels!r}')
    by_value = all(str(key).isdigit() for key in labels)
    pairs = [(name, int(key)) for key, name in labels.items()] if by_value else labels.items()
    names: dict[int, str] = {}
    regions: dict[str, tuple[int, ...]] = {}
    ignored = 0
    for name, value in pairs:
        name = plain_name(listing, name)
        values = value if isinstance(value, list) else [value]
        if not values or any(not isinstance(v, int) or isinstance(v, bool) for v in values):
            raise broken(listing, f"label {name!r} must be a whole number, got {value!r}")
        if name.lower() == "ignore":
            ignored = values[0]
        elif len(values) > 1:
            regions[name] = tuple(sorted(values))
        elif values[0] in names:
            raise broken(listing, f"labels {names[values[0]]!r} and {name!r} are both {values[0]}")
        elif values[0]:
            names[values[0]] = name
    for region in regions.values():
        for value in region:
            if value and value != ignored:
                names.setdefault(value, f"label {value}")
    if not names:
        raise broken(listing, "labels names nothing but background")
    return dict(sorted(names.items())), regions


def _found(root: Path, part: str, ending: str, channels: tuple[str, ...]) -> list[Case]:
    """Cases of ``imagesTr`` or ``imagesTs``, by their file names.

    Raises:
        DataError: DATA-27 for an image without a label map, DATA-29 for missing and extra channels.
    """
    images, labels = root / f"images{part}", root / f"labels{part}"
    cases: dict[str, dict[int, str]] = {}
    numbered = re.compile(rf"(.+)_([0-9]{{4}}){re.escape(ending)}")
    for name in _names(images, ending):
        match = numbered.fullmatch(name)
        if match is None:
            raise broken(
                images / name,
                "has no channel number before its ending",
                f"nnU-Net expects CASE_0000{ending}.",
            )
        cases.setdefault(match[1], {})[int(match[2])] = f"images{part}/{name}"
    drawn = {name[: -len(ending)] for name in _names(labels, ending)}
    for case in sorted(drawn | cases.keys()):
        numbers = sorted(cases.get(case, {}))
        if missing := [i for i in range(len(channels)) if i not in numbers]:
            raise DataError(
                "DATA-29",
                f"{images}: case {case!r} lacks {case}_{missing[0]:04d}{ending}, its sequence "
                f"{channels[missing[0]]!r}.",
                fix="Unpack the data set again, or take the case out.",
            )
        if len(numbers) > len(channels):
            raise DataError(
                "DATA-29",
                f"{images / Path(cases[case][numbers[-1]]).name}: dataset.json names "
                f"{len(channels)} sequence(s), and this is number {numbers[-1]}.",
                fix="Add its name to dataset.json, or take the file out.",
            )
    unlabelled = cases.keys() - drawn
    if unlabelled and (part == "Tr" or drawn):
        raise broken(
            labels,
            f"no label map for {some(f'{case}{ending}' for case in unlabelled)}",
            "Every training case has one; take the images out, or add an empty map.",
        )
    return [
        Case(
            name=case,
            images=tuple(path for _, path in sorted(paths.items())),
            label=f"labels{part}/{case}{ending}" if case in drawn else "",
            part="training" if part == "Tr" else "test",
        )
        for case, paths in sorted(cases.items())
    ]


def _listed(listing: Path, dataset: object, num_channels: int) -> list[Case]:
    """Cases of the key ``dataset``, each with its files."""
    if not isinstance(dataset, Mapping):
        raise broken(listing, "dataset must be an object of cases")
    cases = []
    for name, entry in dataset.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("images"), list):
            raise broken(listing, f"case {name!r} needs a list of images and a label")
        if len(entry["images"]) != num_channels:
            raise DataError(
                "DATA-29",
                f"{listing}: case {name!r} has {len(entry['images'])} images, and "
                f"{num_channels} sequence(s) are named.",
            )
        root = listing.parent
        images = tuple(below(root, listing, path) for path in entry["images"])
        label = below(root, listing, entry.get("label"))
        cases.append(Case(name=str(name), images=images, label=label))
    return cases


def _as_listed(listing: Path, content: Mapping[str, Any], cases: list[Case]) -> None:
    """Version 1 lists its cases too: both must be the same."""
    entries = content.get("training")
    if not isinstance(entries, list):
        return
    listed = [stem(str(e["image"])) for e in entries if isinstance(e, Mapping) and "image" in e]
    for name in listed:
        if listed.count(name) > 1:
            raise broken(listing, f"case {name!r} is listed more than once", "Remove one entry.")
    found = {case.name for case in cases}
    if gone := set(listed) - found:
        raise broken(
            listing,
            f"lists {some(gone)}, which are not in {listing.parent / 'imagesTr'}",
            "Unpack the data set again, or remove the entries.",
        )


def _names(folder: Path, ending: str) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name.endswith(ending) and not path.name.startswith(".")
    )


def _licence(content: Mapping[str, Any]) -> str:
    return str(content.get("licence", content.get("license", "")))
