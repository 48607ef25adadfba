"""What a person looks at before data leave: items with pictures and headers, and the ledger.

The ledger is append-only: a line for every verdict that a person gave, with initials, time, item
and the keyed hash of what was seen. A later verdict on the same item counts, the earlier one stays.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, CoreMRIError, DataError
from data_registry.deidentify.burned_in import display
from data_registry.deidentify.folder import AUDIT

LEDGER = "review.jsonl"
Verdict = Literal["pass", "fail", "unsure"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_INITIALS = re.compile(r"[A-Za-z]{2,4}")
_PICTURE_HEIGHT = 320


@dataclass(frozen=True)
class Item:
    """A volume to look at.

    Args:
        name: Path of its series or file below the folder: keyed ids only.
        files: Its files, in order of names.
        results: Keyed hashes of what is seen, joined; the verdict is on them.
        why: ``flagged`` for text that was found and blanked, ``sample`` for chance.
    """

    name: str
    files: tuple[Path, ...]
    results: str
    why: Literal["flagged", "sample"]


@dataclass(frozen=True)
class Line:
    """A line of the ledger."""

    time: str
    initials: str
    item: str
    results: str
    verdict: Verdict


@dataclass
class Ledger:
    """The verdicts on a folder.

    Args:
        path: Its file; made by the first verdict.
        lines: As written so far.
    """

    path: Path
    lines: list[Line] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """The ledger of `folder`; empty when nobody has reviewed it.

        Raises:
            DataError: DATA-08 when a line is no verdict.
        """
        path = folder / LEDGER
        if not path.exists():
            return cls(path)
        try:
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return cls(path, [Line(**record) for record in records])
        except (ValueError, TypeError):
            raise DataError("DATA-08", f"{path}: a line that is no verdict.") from None

    def add(self, item: Item, verdict: str, initials: str) -> Line:
        """Write what a person said of an item, to the disk before it returns.

        Raises:
            ConfigError: CONFIG-01 for an unknown verdict, or for other initials than two to four
                letters.
            DataError: DATA-07 when it cannot be written.
        """
        if verdict not in VERDICTS:
            raise ConfigError(
                "CONFIG-01", f"no verdict {verdict!r}; there are {', '.join(VERDICTS)}."
            )
        if not _INITIALS.fullmatch(initials):
            raise ConfigError("CONFIG-01", "initials are two to four letters.")
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = Line(now, initials.upper(), item.name, item.results, verdict)
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(vars(line)) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise DataError("DATA-07", f"cannot write {self.path}: {error.strerror}.") from None
        self.lines.append(line)
        return line

    def verdict_on(self, item: Item) -> Line | None:
        """The last verdict on an item, if it is on what the item is now."""
        for line in reversed(self.lines):
            if line.item == item.name:
                return line if line.results == item.results else None
        return None


def items_of(folder: Path, *, sample: int, seed: int) -> list[Item]:
    """Every volume in whose pixels text was found, and a random sample of the others.

    Args:
        folder: Output of ``core-mri data deidentify``.
        sample: How many of the others.
        seed: Of the sample: the same folder and seed give the same items.

    Raises:
        ConfigError: CONFIG-03 when the folder holds no audit.
    """
    volumes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in _done(folder):
        place = Path(record["output"])
        name = place.parent if record["kind"] == "dicom" else place
        if record["kind"] in ("dicom", "nifti"):
            volumes[name.as_posix()].append(record)
    flagged = sorted(name for name, records in volumes.items() if any(r["texts"] for r in records))
    others = sorted(set(volumes) - set(flagged))
    chosen = random.Random(seed).sample(others, min(sample, len(others)))
    return [
        *(_item(folder, name, volumes[name], "flagged") for name in flagged),
        *(_item(folder, name, volumes[name], "sample") for name in chosen),
    ]


def _item(
    folder: Path, name: str, records: list[dict[str, Any]], why: Literal["flagged", "sample"]
) -> Item:
    records = sorted(records, key=lambda record: str(record["output"]))
    files = tuple(folder / record["output"] for record in records)
    return Item(name, files, " ".join(record["result"] for record in records), why)


def _done(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / AUDIT
    if not path.is_file():
        raise ConfigError(
            "CONFIG-03",
            f"{folder} holds no {AUDIT}.",
            fix="Give the output folder of `core-mri data deidentify`.",
        )
    last: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines()[1:]:
        try:
            record = json.loads(line)
        except ValueError:  # cut off by a kill
            continue
        last[record["file"]] = record
    yield from (record for record in last.values() if record["status"] == "done")


def picture(item: Item) -> str:
    """First, middle and lowest values of the volume beside each other, as a data URI of a PNG.

    Raises:
        DataError: DATA-10 when the pixels cannot be decoded.
    """
    from PIL import Image

    frames = _frames(item)
    views = [frames[0], frames[len(frames) // 2], np.min(frames, axis=0)]
    tiles = []
    for view in views:
        image = Image.fromarray(display(view))
        width = max(1, round(image.width * _PICTURE_HEIGHT / image.height))
        tiles.append(np.asarray(image.resize((width, _PICTURE_HEIGHT))))
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(tiles, axis=1)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _frames(item: Item) -> list[npt.NDArray[Any]]:
    """At most 24 slices of one shape, evenly spread."""
    from core_mri import read_volume

    try:
        if item.files[0].suffix != ".dcm":
            array = np.asarray(read_volume(item.files[0]).array)
            array = array.reshape(*array.shape[:3], -1)[..., 0]
            axis = int(np.argmin(array.shape))
            slices = list(np.moveaxis(array, axis, 0))
        else:
            import pydicom

            loaded = [
                pydicom.dcmread(path) for path in item.files[:: max(1, len(item.files) // 24)]
            ]
            loaded.sort(key=lambda dataset: int(dataset.get("InstanceNumber") or 0))
            slices = []
            for dataset in loaded:
                pixels = np.asarray(dataset.pixel_array)
                gray = (
                    pixels.mean(axis=-1) if int(dataset.get("SamplesPerPixel", 1)) > 1 else pixels
                )
                slices += list(gray) if gray.ndim == 3 else [gray]
    except CoreMRIError:
        raise
    except Exception as error:  # decoders raise nearly anything
        raise DataError("DATA-10", f"cannot be decoded ({type(error).__name__}).") from None
    same = [frame for frame in slices if frame.shape == slices[0].shape]
    return same[:: max(1, len(same) // 24)]


def header(item: Item) -> list[tuple[str, str]]:
    """Every attribute of the first file that holds text, a name, a date or an id, nested too."""
    if item.files[0].suffix != ".dcm":
        from core_mri import read_volume

        volume = read_volume(item.files[0])
        return [("shape", str(volume.shape)), *((k, str(v)) for k, v in volume.facts.items())]
    import pydicom

    dataset = pydicom.dcmread(item.files[0], stop_before_pixels=True)
    rows = []
    for element in dataset.iterall():
        if element.VR in ("SQ", "OB", "OW", "UN", "US", "FD", "FL", "SS", "UL", "SL", "DS", "IS"):
            continue
        value = str(element.value)
        if value and not value.startswith("1.2.840.10008."):
            rows.append((element.name, value[:200]))
    return rows
