"""Data sets that are a list of files: MONAI's JSON, MRI-CORE's pictures, and pairs by name.

Sources: MONAI's `load_decathlon_datalist` and Auto3DSeg (``training``, ``validation``, ``testing``;
``image`` a path or one a channel; ``fold``); the README and `utils/dataset.py` of MRI-CORE's code
(folders ``images`` and ``masks``; ``train.txt``, ``val.txt``, ``test.txt`` with lines
``IMAGE,MASK``, ``IMAGE MASK`` or one name for both; the patient is the first two parts of a name
split at dashes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from core_mri.errors import ConfigError, DataError
from data_registry.layouts.labelled_set import (
    Case,
    LabelledSet,
    Part,
    below,
    broken,
    names_by_number,
    read_json,
    some,
    unique_names,
)
from data_registry.layouts.nnunet import structures_of

PARTS: dict[str, Part] = {
    "training": "training",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""Key of a MONAI list -> part."""
PICTURE_LISTS: dict[str, Part] = {"train": "training", "val": "validation", "test": "test"}
"""Name of MRI-CORE's lists, ``.txt`` or ``.csv`` -> part."""
PICTURE_PATIENT = r"(?P<subject>[^-]+-[^-]+)-"
"""MRI-CORE's rule: ``Study-001-slice-12.png`` shows patient ``Study-001``."""
PICTURE_VOLUME = r"(?P<subject>.+?)[-_.](?:z|s|sl|slice)?[-_]?[0-9]+$"
"""Of other names the last number is that of the slice: ``image_044.ni_z001`` of ``image_044.ni``.
Two patients taken for one cost variety; slices of one in two splits would leak."""


def read_monai(listing: Path, label_names: Mapping[int, str]) -> LabelledSet:
    """A MONAI data list; paths are relative to its folder.

    Args:
        listing: The JSON file.
        label_names: Structure of each value, where the list tells none.

    Raises:
        DataError: DATA-27 when it contradicts itself or the folder, DATA-29 when cases have
            different numbers of channels.
    """
    content = read_json(listing)
    root = listing.parent
    found: list[tuple[tuple[str, ...], str, Part, int | None]] = []
    for key, part in PARTS.items():
        entries = content.get(key, [])
        if not isinstance(entries, list):
            raise broken(listing, f"{key} must be a list, got {type(entries).__name__}")
        for entry in entries:
            item = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(item, Mapping) or not item.get("image"):
                raise broken(listing, f"a case of {key} needs an image, got {entry!r}")
            if part != "test" and not item.get("label"):
                raise broken(
                    listing,
                    f"no label map for {item['image']!r} of {key}",
                    "Add its label, or move it to test.",
                )
            paths = item["image"] if isinstance(item["image"], list) else [item["image"]]
            images = tuple(below(root, listing, path) for path in paths)
            label = below(root, listing, item["label"]) if item.get("label") else ""
            fold = item.get("fold")
            found.append((images, label, part, fold if isinstance(fold, int) else None))
    counts = {len(images): images[0] for images, *_ in found}
    if len(counts) > 1:
        (fewer, one), (more, other) = sorted(counts.items())[:2]
        raise DataError(
            "DATA-29",
            f"{listing}: mixed channels, {fewer} for {one}, {more} for {other}.",
            fix="Give every case the same sequences, in the same order.",
        )
    key = "channel_names" if "channel_names" in content else "modality"
    num_channels = max(counts, default=1)
    channels: tuple[str, ...] = tuple(map(str, range(num_channels))) if num_channels > 1 else ()
    if isinstance(content.get(key), Mapping):
        channels = names_by_number(listing, content[key], key)
    if num_channels > 1 and len(channels) != num_channels:
        raise DataError(
            "DATA-29",
            f"{listing}: {key} names {len(channels)} sequences, and the cases have {num_channels}.",
        )
    names, regions = (
        structures_of(listing, content["labels"])
        if content.get("labels")
        else (dict(label_names), {})
    )
    cases = unique_names([images[0] for images, *_ in found])
    return LabelledSet(
        layout="monai",
        root=root,
        listing=listing,
        cases=tuple(
            Case(name=name, images=images, label=label, part=part, fold=fold)
            for name, (images, label, part, fold) in zip(cases, found, strict=True)
        ),
        channels=channels,
        label_names=names,
        label_regions=regions,
        licence=str(content.get("licence", content.get("license", ""))),
    )


def is_monai(content: Mapping[str, object]) -> bool:
    """Whether a JSON object is a list of cases."""
    return isinstance(content.get("training"), list)


def picture_lists(root: Path) -> dict[Part, Path]:
    """MRI-CORE's lists in a folder.

    Raises:
        DataError: DATA-27 when a part has two.
    """
    found: dict[Part, Path] = {}
    for name, part in PICTURE_LISTS.items():
        paths = [path for end in ("txt", "csv") if (path := root / f"{name}.{end}").is_file()]
        if len(paths) > 1:
            raise broken(paths[0], f"{paths[1].name} lists the same part", "Remove one of them.")
        if paths:
            found[part] = paths[0]
    return found


def read_pictures(root: Path, label_names: Mapping[int, str]) -> LabelledSet:
    """MRI-CORE's folder of 2D slices as PNG: every picture is a volume of one slice.

    Args:
        root: The folder with the lists.
        label_names: Structure of each value of the masks, where the caller knows them.

    Raises:
        DataError: DATA-27 when lists and folder contradict each other.
    """
    lists = picture_lists(root)
    found: list[tuple[str, str, Part]] = []
    for part, listing in lists.items():
        try:
            text = listing.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise broken(listing, "is no text") from None
        for number, line in enumerate(text.splitlines(), start=1):
            names = [word for word in re.split(r"\s*,\s*|\s+", line.strip()) if word]
            if not names:
                continue
            if len(names) > 2:
                raise broken(
                    listing,
                    f"line {number}: expected IMAGE,MASK, got {len(names)} names",
                    "File names must not hold blanks or commas.",
                )
            image = _in_folder(root, "images", listing, names[0])
            label = _in_folder(root, "masks", listing, names[-1].lstrip("/"))
            found.append((image, label, part))
    listing = next(iter(lists.values()), root / "train.txt")
    names = unique_names([image for image, *_ in found])
    return LabelledSet(
        layout="mri-core-png",
        root=root,
        listing=listing,
        cases=tuple(
            Case(name=name, images=(image,), label=label, part=part)
            for name, (image, label, part) in zip(names, found, strict=True)
        ),
        label_names=label_names,
        patient_patterns=(PICTURE_PATIENT, PICTURE_VOLUME),
    )


def read_pairs(root: Path, pattern: str, label_names: Mapping[int, str]) -> LabelledSet:
    """Images and label maps that belong together by name.

    Args:
        root: Folder.
        pattern: ``images/*.nii.gz=labels/*_seg.nii.gz``: ``*`` is the name of the case, the same
            text wherever it stands. Several sequences: ``flair:*/flair.nii.gz,t1:*/t1.nii.gz=...``.
        label_names: Structure of each value, where the caller knows them.

    Raises:
        ConfigError: CONFIG-01 when the pattern cannot be understood.
        DataError: DATA-01 when it matches nothing, DATA-27 for an image without a label map,
            DATA-29 for a case without one of its images.
    """
    left, equals, label_glob = pattern.partition("=")
    sides = [part.rpartition(":") for part in left.split(",")]
    channels = tuple(name.strip() for name, _, _ in sides if name.strip())
    globs = [glob.strip() for _, _, glob in sides]
    wrong = not equals or any("*" not in glob for glob in (*globs, label_glob))
    if wrong or (len(globs) > 1 and len(set(channels)) != len(globs)):
        raise ConfigError(
            "CONFIG-01",
            f"--pairs {pattern!r} is not understood.",
            fix="Write images/*.nii.gz=labels/*.nii.gz, or t1:*/t1.nii.gz,t2:*/t2.nii.gz=*/seg."
            "nii.gz: every part holds *, and several images have names.",
        )
    files = [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    labels = _matching(files, label_glob.strip())
    images = [_matching(files, glob, without=set(labels.values())) for glob in globs]
    if not labels:
        raise DataError("DATA-01", f"{root}: no file matches {label_glob!r}.", fix="Check --pairs.")
    for case in sorted(labels.keys() | {case for one in images for case in one}):
        for number, (glob, one) in enumerate(zip(globs, images, strict=True)):
            if case not in one:
                what = f"sequence {channels[number]!r}" if channels else "image"
                raise DataError(
                    "DATA-29",
                    f"{root}: case {case!r} has no {what}, expected at {glob.replace('*', case)}.",
                    fix="Add the file, or take the case out.",
                )
    if lonely := {case for one in images for case in one} - labels.keys():
        raise broken(
            root,
            f"no label map for {some(lonely)}, expected at {label_glob.replace('*', min(lonely))}",
            "Add it, or take the images out.",
        )
    return LabelledSet(
        layout="pairs",
        root=root,
        listing=root,
        cases=tuple(
            Case(name=case, images=tuple(one[case] for one in images), label=label)
            for case, label in sorted(labels.items())
        ),
        channels=channels,
        label_names=label_names,
    )


def _matching(files: list[str], glob: str, without: set[str] | None = None) -> dict[str, str]:
    """Case -> path of the files that a pattern takes."""
    first, *rest = map(re.escape, glob.split("*"))
    pattern = re.compile(f"{first}(?P<case>[^/]+?)" + "(?P=case)".join(rest))
    found = ((pattern.fullmatch(path), path) for path in files if path not in (without or ()))
    return {match["case"]: path for match, path in found if match}


def _in_folder(root: Path, folder: str, listing: Path, name: str) -> str:
    """A path of a list, which starts at the root or at the folder of its kind."""
    inner = f"{folder}/{name}"
    return below(root, listing, inner if (root / inner).is_file() else name)
