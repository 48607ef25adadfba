"""Which files show text or a face: series by series, before headers are de-identified."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core_mri.errors import ConfigError, CoreMRIError
from data_registry.deidentify.burned_in import Box, read_series
from data_registry.deidentify.encoding import parse, text
from data_registry.deidentify.faces import FacePolicy
from data_registry.deidentify.heads import FaceVerdict, look_at_series
from data_registry.deidentify.mapped import map_file
from data_registry.worker_pool import WorkerPool

PixelMode = Literal["skip", "check", "blank"]
_SERIES = 0x0020000E
_BATCH = 64


@dataclass(frozen=True)
class PixelVerdict:
    """What the pixels of a file show.

    Args:
        code: Empty when no text was found, DATA-10 when the pixels cannot be decoded, DATA-16 for
            text in the series.
        boxes: Frame -> rectangles of text and what was read there, when every frame was read.
        everything: Whether every frame was read.
        blank: Whether the text may be blanked.
    """

    code: str = ""
    boxes: dict[int, list[tuple[Box, str]]] = field(default_factory=dict, repr=False)
    everything: bool = False
    blank: bool = False


def look_at_pixels(paths: list[str], pool: WorkerPool, mode: PixelMode) -> dict[str, PixelVerdict]:
    """A verdict for every DICOM file with pixel data.

    Args:
        paths: Files of any kind.
        pool: Worker processes.
        mode: For ``blank``, every frame of a series with text is read.
    """
    verdicts: dict[str, PixelVerdict] = {}
    tasks = ((tuple(own), mode == "blank") for own in _by_series(paths, pool).values())
    for (own, _), result in pool.each(_look, tasks):
        dead = [PixelVerdict("DATA-10")] * len(own)  # a decoder that killed its process
        verdicts.update(zip(own, result or dead, strict=True))
    return verdicts


def look_at_faces(paths: list[str], pool: WorkerPool, policy: FacePolicy) -> dict[str, FaceVerdict]:
    """A verdict for every DICOM file with pixel data: the template is fitted to each series.

    Args:
        paths: Files of any kind.
        pool: Worker processes.
        policy: ``crop`` or ``deface``.
    """
    verdicts: dict[str, FaceVerdict] = {}
    tasks = ((tuple(own), policy) for own in _by_series(paths, pool).values())
    for (own, _), result in pool.each(_fit, tasks):
        verdicts.update(dict.fromkeys(own, result or FaceVerdict("held", policy)))
    return verdicts


def _fit(task: tuple[tuple[str, ...], FacePolicy]) -> FaceVerdict:
    paths, policy = task
    return look_at_series([Path(path) for path in paths], policy)


def _by_series(paths: list[str], pool: WorkerPool) -> dict[str, list[str]]:
    series: dict[str, list[str]] = defaultdict(list)
    batches = (tuple(paths[i : i + _BATCH]) for i in range(0, len(paths), _BATCH))
    for batch, found in pool.each(_series_of, batches):
        for path, name in zip(batch, found or [""] * len(batch), strict=True):
            if name:
                series[name].append(path)
    return series


def _series_of(paths: tuple[str, ...]) -> list[str]:
    """Series of each file; empty for what is no DICOM image."""
    return list(_names(paths))


def _names(paths: tuple[str, ...]) -> Iterator[str]:
    for path in paths:
        name = ""
        try:
            if Path(path).is_symlink() or not Path(path).is_file():
                raise ValueError
            view = map_file(Path(path))
            parsed = parse(view)
            tags = {element.tag: element for element in parsed.elements}
            if 0x7FE00010 in tags and _SERIES in tags:
                name = text(parsed.content, tags[_SERIES])
        except (CoreMRIError, OSError, ValueError, LookupError):
            pass  # the engine says what is wrong with it
        yield name


def _look(task: tuple[tuple[str, ...], bool]) -> list[PixelVerdict]:
    paths, locate = task
    files = [Path(path) for path in paths]
    try:
        seen = read_series(files)
        if seen.flagged and locate and not seen.everything:
            located = read_series(files, every_frame=True)
            seen = located if located.flagged else seen  # seen once, it is there
    except ConfigError:
        raise
    except CoreMRIError as error:
        return [PixelVerdict(error.code)] * len(paths)
    if not seen.flagged:
        return [PixelVerdict(everything=seen.everything)] * len(paths)
    verdicts = []
    for number in range(len(paths)):
        boxes: dict[int, list[tuple[Box, str]]] = defaultdict(list)
        for (file, frame), reads in seen.reads.items():
            if file == number:
                boxes[frame] += [(read.box, read.text) for read in reads]
        verdicts.append(PixelVerdict("DATA-16", dict(boxes), seen.everything, locate))
    return verdicts
