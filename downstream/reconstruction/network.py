"""Weights named as the source of a reconstruction: loaded once, known by their hash."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from torch import nn

from core_mri.runs import file_sha256
from core_mri.weights import load_model
from core_mri.weights.folder import find_folder, read_config
from core_mri.weights.hub import pull


def load_network(source: str, device: str) -> nn.Module:
    """The model; that of the last call is kept, as a suite asks for it file after file.

    Raises:
        WeightsError: What `core_mri.load_model` raises.
    """
    return _load(source, device, weights_hash(source))


def weights_hash(source: str) -> str:
    """SHA-256 of the tensors, "" for what is neither a folder nor a file.

    Raises:
        WeightsError: WEIGHTS-01 for a folder without weights.
    """
    folder = pull(source) if source.startswith("hf:") else Path(source)
    if folder.is_dir():
        return str(read_config(find_folder(folder))["sha256"])
    file = Path(source.partition(":")[2])
    if not file.is_file():
        return ""
    facts = file.stat()
    return _file_hash(file, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1)
def _load(source: str, device: str, _digest: str) -> nn.Module:
    return load_model(source, device=device)


@lru_cache(maxsize=16)
def _file_hash(file: Path, _size: int, _modified: int) -> str:
    return file_sha256(file)
