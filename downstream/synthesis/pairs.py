"""Pairs on disk: scan and label map as NIfTI, where they come from as JSON, and a source of them.

```
OUT/source.yaml  OUT/NAME/{image | SEQUENCE...}.nii.gz  .../labels.nii.gz  .../anatomy.nii.gz
                 OUT/NAME/provenance.json
```
`labels` are the structures of the task with its values, `anatomy` all that the scan was made from,
tissues too. A pair is written aside and renamed: a folder that is there is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from core_mri import write_volume
from core_mri.runs import write_atomically, writing
from core_mri.version import __version__
from core_mri.volume import Volume
from downstream.synthesis.makers import Scan

GREY = 4000
"""Stored value of 1."""
PROVENANCE = "provenance.json"
LABELS = "labels.nii.gz"


def write_pair(
    folder: Path,
    scan: Scan,
    sequences: Sequence[str],
    provenance: Mapping[str, Any],
    values: Sequence[int],
) -> None:
    """Write one pair; its folder must not exist.

    Args:
        folder: Where.
        scan: What was made, and what it was made from.
        sequences: Names of its channels.
        provenance: Where it comes from; JSON-able.
        values: Value of each class of the anatomy (from 0) in `labels`; 0 for tissues.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    with writing(folder):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for channel, sequence in zip(scan.channels, sequences, strict=True):
            stored = np.rint(channel * GREY).astype(np.int16)
            write_volume(Volume(stored, scan.labels.affine), aside / image_name(sequence))
        write_volume(scan.labels, aside / "anatomy.nii.gz")
        kinds = np.array(values, np.uint8 if max(values) < 256 else np.int32)
        write_volume(scan.labels.with_array(kinds[scan.labels.array]), aside / LABELS)
        facts = {"synthetic": True, "core_mri": __version__, **provenance}
        (aside / PROVENANCE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        aside.rename(folder)


def image_name(sequence: str) -> str:
    """File name of a sequence."""
    return f"{sequence or 'image'}.nii.gz"


def pair_folders(out: Path) -> list[Path]:
    """The whole pairs below a folder."""
    return sorted(path.parent for path in out.glob(f"[!.]*/{PROVENANCE}"))


def write_source(
    out: Path, name: str, *, licence: str, sequences: Sequence[str], region: str
) -> Path:
    """``source.yaml`` of the pairs below a folder, for `core-mri data ingest --sources`.

    Returns:
        Its path.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    told = [(f, json.loads((f / PROVENANCE).read_text())) for f in pair_folders(out)]
    common = {
        "name": name, "licence": licence, "root": ".", "synthetic": True, "generated": True,
        **({"region": region} if region != "unknown" else {}),
    }  # fmt: skip
    entries: list[dict[str, Any]] = []
    for sequence in sequences:
        entry = common | ({"sequence": sequence} if sequence else {})
        entries.append(entry | {"listed": _listed(told, image_name(sequence), sequence)})
    names = {value: structure for _, facts in told for value, structure in facts["names"].items()}
    labels = common | {"role": "label", "listed": _listed(told, LABELS, "")}
    entries.append(labels | {"label_values": {int(v): n for v, n in names.items()}})
    path = out / "source.yaml"
    with writing(path):
        write_atomically(path, yaml.safe_dump({"sources": entries}, sort_keys=False).encode())
    return path


def _listed(
    told: Sequence[tuple[Path, Mapping[str, Any]]], file: str, sequence: str
) -> dict[str, Any]:
    return {
        f"{folder.name}/{file}": {
            "patient": folder.name,
            "case": folder.name,
            "generated_from": list(facts["generated_from"]),
            **({"channels": [sequence]} if sequence else {}),
        }
        for folder, facts in told
    }
