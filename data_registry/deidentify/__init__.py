"""De-identification of headers: keyed identifiers, cleaned facts, DICOM file to DICOM file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_registry.deidentify.facts import deidentify_facts
    from data_registry.deidentify.headers import deidentify_dataset
    from data_registry.deidentify.identifiers import load_key

__all__ = ["deidentify_dataset", "deidentify_facts", "load_key"]

_HOME = {"deidentify_dataset": "headers", "deidentify_facts": "facts", "load_key": "identifiers"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
