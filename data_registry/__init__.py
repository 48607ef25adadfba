"""data_registry: which scans exist, from where, under which licence, in which split."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

# Bound now, not on first use: the submodule of that name would otherwise take the function's place.
from data_registry.ingest import ingest

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.ingest import IngestConfig, IngestReport
    from data_registry.schema import VolumeRow
    from data_registry.slices import SliceDataset, SliceSample
    from data_registry.source_list import Source, load_sources

_HOME = {
    "IngestConfig": "data_registry.ingest",
    "IngestReport": "data_registry.ingest",
    "Registry": "data_registry.catalogue",
    "SliceDataset": "data_registry.slices",
    "SliceSample": "data_registry.slices",
    "Source": "data_registry.source_list",
    "VolumeRow": "data_registry.schema",
    "load_sources": "data_registry.source_list",
}

__all__ = [
    "IngestConfig",
    "IngestReport",
    "Registry",
    "SliceDataset",
    "SliceSample",
    "Source",
    "VolumeRow",
    "ingest",
    "load_sources",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'data_registry' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
