"""De-identification of headers by PS3.15 Annex E, and a verifier that can veto the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_registry.deidentify.facts import deidentify_facts
    from data_registry.deidentify.folder import deidentify_folder
    from data_registry.deidentify.headers import deidentify_dicom
    from data_registry.deidentify.identifiers import load_key
    from data_registry.deidentify.profile import PROFILES, Profile
    from data_registry.deidentify.verify import find_leaks
    from data_registry.deidentify.verify_folder import verify_folder

_HOME = {
    "PROFILES": "profile",
    "Profile": "profile",
    "deidentify_dicom": "headers",
    "deidentify_facts": "facts",
    "deidentify_folder": "folder",
    "find_leaks": "verify",
    "load_key": "identifiers",
    "verify_folder": "verify_folder",
}
__all__ = [  # noqa: RUF022 - in the order of use
    "load_key", "Profile", "PROFILES", "deidentify_dicom", "deidentify_facts", "deidentify_folder",
    "find_leaks", "verify_folder",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
