"""``core-mri export``, ``push`` and ``pull``: weights for other programs and other people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from core_mri.weights.export import Format


@dataclass(frozen=True, kw_only=True)
class _Export:
    """Write a model as a file of another program, run it beside ours, and say what differs."""

    source: Annotated[str, tyro.conf.Positional]
    """Weights: a folder, or any other source of core_mri.load_model."""
    format: Format
    """``sam``: tensors named as Segment Anything's; ``torchscript``; ``onnx`` (extra ``onnx``)."""
    out: Path
    """The file; for ``sam``, a name that ends in .safetensors is written so."""
    image_size: int = 0
    """Side of the images, px; 0: the model's own, and 1024 for a plain ViT in SAM's layout."""
    json: bool = False
    """Print what was written as JSON."""


@dataclass(frozen=True, kw_only=True)
class _Push:
    """Publish a weights folder on the Hugging Face hub (HF_ENDPOINT, HF_TOKEN are respected)."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The weights folder; its hash is checked first."""
    repo: Annotated[str, tyro.conf.Positional]
    """OWNER/NAME."""
    public: bool = False
    """Let everybody see it, when the repository is made now; otherwise only its owner does."""


@dataclass(frozen=True, kw_only=True)
class _Pull:
    """Fetch a weights folder from the Hugging Face hub and check its hash."""

    source: Annotated[str, tyro.conf.Positional]
    """hf:OWNER/NAME or hf:OWNER/NAME@REVISION."""
    out: Path
    """Folder for the three files."""


def export_main(arguments: Sequence[str]) -> int:
    """``core-mri export``; returns the exit code."""
    options = tyro.cli(_Export, args=list(arguments), prog="core-mri export")
    from core_mri.weights import load_model
    from core_mri.weights.export import export

    done = export(
        load_model(options.source, device="cpu"),
        options.out,
        format=options.format,
        image_size=options.image_size,
    )
    if options.json:
        print(json.dumps(done._asdict() | {"path": str(done.path)}))
        return 0
    print(f"{done.path}: {options.format}, images of {done.image_size} px")
    print(f"  SHA-256 {done.sha256}")
    if done.difference is not None:
        print(f"  run beside the model: differs by {done.difference:.1e} of the largest value")
    if done.dropped:
        print(f"  left out, for which the layout has no place: {', '.join(done.dropped)}")
    return 0


def push_main(arguments: Sequence[str]) -> int:
    """``core-mri push``; returns the exit code."""
    options = tyro.cli(_Push, args=list(arguments), prog="core-mri push")
    from core_mri.weights.hub import push

    commit = push(options.folder, options.repo, private=not options.public)
    print(f"hf:{options.repo}@{commit}")
    return 0


def pull_main(arguments: Sequence[str]) -> int:
    """``core-mri pull``; returns the exit code."""
    options = tyro.cli(_Pull, args=list(arguments), prog="core-mri pull")
    from core_mri.weights.hub import pull

    folder = pull(options.source, folder=options.out)
    print(f"core_mri.load_model({str(folder)!r})")
    return 0
