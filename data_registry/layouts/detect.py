"""Which layout a folder has, seen from its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core_mri.errors import ConfigError, DataError
from data_registry.layouts.as_sources import Choices, Told, told
from data_registry.layouts.file_checks import check_files
from data_registry.layouts.labelled_set import LabelledSet, broken, read_json
from data_registry.layouts.lists import (
    is_monai,
    picture_lists,
    read_monai,
    read_pairs,
    read_pictures,
)
from data_registry.layouts.nnunet import DATASET, is_decathlon, read_decathlon, read_nnunet

Layout = Literal["auto", "none", "nnunet", "msd", "monai", "mri-core-png", "pairs"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How to read a folder."""

    layout: Layout = "auto"
    """``none`` takes every file for itself, as in folders without a list."""
    pairs: str = ""
    """Pattern of `read_pairs`."""
    label_names: Mapping[int, str] = field(default_factory=dict)
    """Structure of each value, where the layout tells none."""


def read_layout(path: Path, asked: Asked) -> LabelledSet | None:
    """The labelled data set in a folder; None when it has none of the layouts and none was asked.

    Args:
        path: The folder, or the JSON file of its list.
        asked: How to read it.

    Raises:
        ConfigError: CONFIG-05 for options that belong to other layouts, or a layout that the folder
            does not have.
        DataError: What is wrong in the data set, as the readers say.
    """
    layout = _layout(path, asked)
    if layout is None:
        return None
    if asked.label_names and layout in ("nnunet", "msd"):
        raise ConfigError(
            "CONFIG-05", f"--label-names was given, and {_listing(path)} names the labels itself."
        )
    if layout == "pairs":
        return read_pairs(path, asked.pairs, asked.label_names)
    if layout == "mri-core-png":
        return read_pictures(path, asked.label_names)
    if layout == "monai":
        return read_monai(_monai_list(path), asked.label_names)
    return (read_nnunet if layout == "nnunet" else read_decathlon)(_listing(path))


def sources_in(
    path: Path,
    asked: Asked,
    choices: Choices,
    on_progress: Callable[[int, int], None] | None = None,
) -> Told | None:
    """Read a labelled data set, check its files, and make sources of it.

    Args:
        path: As `read_layout`.
        asked: As `read_layout`.
        choices: Name, licence and what else the caller decides.
        on_progress: As `check_files`.

    Returns:
        None when the folder is no labelled data set.

    Raises:
        ConfigError: As `read_layout` and `told`.
        DataError: As `read_layout`, `told` and `check_files`.
        GeometryError: As `check_files`.
    """
    data = read_layout(path, asked)
    if data is None:
        return None
    made = told(data, choices)
    return Told(made.sources, (*made.lines, *check_files(data, on_progress)))


def _layout(path: Path, asked: Asked) -> Layout | None:
    """The one that was asked for, or the one that the folder has."""
    if asked.pairs and asked.layout not in ("auto", "pairs"):
        raise ConfigError("CONFIG-05", f"--pairs belongs to --layout pairs, not {asked.layout}.")
    if asked.pairs or asked.layout == "pairs":
        if not asked.pairs or not path.is_dir():
            raise ConfigError(
                "CONFIG-05",
                f"{path}: --layout pairs needs a folder and a pattern.",
                fix="Give --pairs 'images/*.nii.gz=labels/*.nii.gz'.",
            )
        return "pairs"
    if asked.layout != "auto":
        return None if asked.layout == "none" else asked.layout
    if path.is_file() and path.suffix.lower() != ".json":
        return None
    if _listing(path).is_file() and _listing(path).name == DATASET:
        content = read_json(_listing(path))
        if "training" not in content and "channel_names" not in content:
            return "nnunet" if "modality" in content else None
        return "msd" if is_decathlon(_listing(path), content) else "nnunet"
    if path.is_file():
        return "monai"
    if len(picture_lists(path)) > 1 or (picture_lists(path) and (path / "masks").is_dir()):
        return "mri-core-png"
    return "monai" if _monai_lists(path) else None


def _listing(path: Path) -> Path:
    return path / DATASET if path.is_dir() else path


def _monai_lists(folder: Path) -> list[Path]:
    """JSON files right in a folder that list cases."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = read_json(path)
        except DataError:
            continue  # other programs' files
        if is_monai(content):
            found.append(path)
    return found


def _monai_list(path: Path) -> Path:
    if path.is_file():
        return path
    found = _monai_lists(path)
    if len(found) == 1:
        return found[0]
    if not found:
        raise broken(path, "holds no JSON file with a list `training`", "Give the file itself.")
    raise ConfigError(
        "CONFIG-05",
        f"{path} holds {len(found)} lists: {', '.join(file.name for file in found)}.",
        fix=f"Give one of them: core-mri data ingest {found[0]} ...",
    )
