"""Which files show text or a face: series by series, before headers are de-identified."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from core_mri.errors import ConfigError, CoreMRIError
from data_registry.deidentify.burned_in import read_series
from data_registry.deidentify.encoding import parse, text
from data_registry.deidentify.heads import FaceVerdict, look_at_series
from data_registry.deidentify.mapped import map_file
from data_registry.deidentify.outcome import Passed
from data_registry.deidentify.scope import Box, FacePolicy, Scope, is_asked_for
from data_registry.worker_pool import WorkerPool

T = TypeVar("T")
_SERIES, _SOP_CLASS = 0x0020000E, 0x00080016
_BATCH = 64


@dataclass(frozen=True)
class PixelVerdict:
    """What the pixels of a file show.

    Args:
        code: Empty when no text was found, DATA-10 when the pixels cannot be decoded, DATA-16 for
            text in the series.
        boxes: Frame -> rectangles of text and what was read there, when every frame was read.
        everything: Whether every frame was read.
    """

    code: str = ""
    boxes: dict[int, list[tuple[Box, str]]] = field(default_factory=dict, repr=False)
    everything: bool = False


@dataclass(frozen=True)
class Looks:
    """What was seen of files, by path; files that are no DICOM images have no entry.

    Args:
        pixels: What their pixels show; None when nobody looked.
        faces: What is to become of their faces; None when they stay.
        series: Their series, as the file names it.
    """

    pixels: dict[str, PixelVerdict] | None = None
    faces: dict[str, FaceVerdict] | None = None
    series: dict[str, str] = field(default_factory=dict)

    def of(self, paths: list[str]) -> Looks:
        """The part that some files need."""
        return Looks(
            None if self.pixels is None else _part(self.pixels, paths),
            None if self.faces is None else _part(self.faces, paths),
            _part(self.series, paths),
        )


def _part(seen: dict[str, T], paths: list[str]) -> dict[str, T]:
    return {path: seen[path] for path in paths if path in seen}


def look_at(
    files: list[tuple[str, str, str]],
    pool: WorkerPool,
    scope: Scope,
    passed: Passed,
    pictures: Path | None = None,
) -> Looks:
    """Look at the pixels and the faces of all DICOM images, series by series.

    Args:
        files: Keyed id, path and stamp of each.
        pool: Worker processes.
        scope: What is looked for; with ``blank``, every frame of a series with text is read.
        passed: Path -> codes for which a person has passed a file: nobody looks for them again.
        pictures: Folder for pictures of heads before and after.
    """
    if scope.pixels == "skip" and scope.faces == "keep":
        return Looks()
    series = _by_series([path for _, path, _ in files], pool, scope)
    names = {path: name for name, paths in series.items() for path in paths}
    ids = {path: identity for identity, path, _ in files}

    def open_for(code: str) -> list[tuple[str, ...]]:
        rest = (tuple(p for p in own if code not in passed.get(p, ())) for own in series.values())
        return [paths for paths in rest if paths]

    texts: dict[str, PixelVerdict] | None = None
    if scope.pixels != "skip":
        texts = dict.fromkeys(names, PixelVerdict())
        tasks = [(paths, scope.pixels == "blank", scope.regions) for paths in open_for("DATA-16")]
        for (paths, _, _), verdicts in pool.each(_look, iter(tasks)):
            dead = [PixelVerdict("DATA-10")] * len(paths)  # a decoder that killed its process
            texts.update(zip(paths, verdicts or dead, strict=True))
    faces: dict[str, FaceVerdict] | None = None
    if scope.faces != "keep":
        faces = dict.fromkeys(names, FaceVerdict("none", scope.faces))
        heads = [
            (paths, scope.faces, None if pictures is None else pictures / f"{ids[paths[0]]}.png")
            for paths in open_for("DATA-17")
        ]
        for (paths, policy, _), verdict in pool.each(_fit, iter(heads)):
            faces.update(dict.fromkeys(paths, verdict or FaceVerdict("held", policy)))
    return Looks(texts, faces, names)


def _fit(task: tuple[tuple[str, ...], FacePolicy, Path | None]) -> FaceVerdict:
    paths, policy, picture = task
    return look_at_series([Path(path) for path in paths], policy, picture)


def _by_series(paths: list[str], pool: WorkerPool, scope: Scope) -> dict[str, list[str]]:
    series: dict[str, list[str]] = defaultdict(list)
    batches = ((tuple(paths[i : i + _BATCH]), scope) for i in range(0, len(paths), _BATCH))
    for (batch, _), found in pool.each(_series_of, batches):
        for path, name in zip(batch, found or [""] * len(batch), strict=True):
            if name:
                series[name].append(path)
    return series


def _series_of(task: tuple[tuple[str, ...], Scope]) -> list[str]:
    """Series of each file; empty for what is no DICOM image, or was not asked for."""
    return list(_names(*task))


def _names(paths: tuple[str, ...], scope: Scope) -> Iterator[str]:
    for path in paths:
        name = ""
        try:
            if Path(path).is_symlink() or not Path(path).is_file():
                raise ValueError
            view = map_file(Path(path))
            parsed = parse(view)
            tags = {element.tag: element for element in parsed.elements}
            sop_class = text(parsed.content, tags[_SOP_CLASS])
            if 0x7FE00010 in tags and _SERIES in tags and is_asked_for(sop_class, scope):
                name = text(parsed.content, tags[_SERIES])
        except (CoreMRIError, OSError, ValueError, LookupError):
            pass  # the engine says what is wrong with it
        yield name


def _look(task: tuple[tuple[str, ...], bool, tuple[Box, ...]]) -> list[PixelVerdict]:
    paths, locate, regions = task
    files = [Path(path) for path in paths]
    try:
        seen = read_series(files, without=regions)
        if seen.flagged and locate and not seen.everything:
            located = read_series(files, every_frame=True, without=regions)
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
        verdicts.append(PixelVerdict("DATA-16", dict(boxes), seen.everything))
    return verdicts
