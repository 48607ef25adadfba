"""Weights that come inside the package, by name."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent.parent / "assets" / "weights"


def released_names() -> list[str]:
    """What `core_mri.load_model` takes without a folder or a file."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))


def released_folder(name: str | Path) -> Path:
    """The weights folder of a released name; of another name, one that does not exist."""
    return _FOLDER / Path(name).name
