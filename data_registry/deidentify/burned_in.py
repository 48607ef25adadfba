"""Text in the pixels: found by reading three views of a series, or all its slices.

Burned-in text stands at one place in all slices, so that it is plain in the minimum over slices,
where anatomy is dark; the first and the middle slice are read too. Every frame is read where text
is likely: secondary captures, derived images, colour, eight bits, and where the header says so.
What was read is never stored or logged, only keyed hashes of it.

Reader: rapidocr (PP-OCR models inside the wheel) on onnxruntime, shorter side enlarged to 384.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError
from data_registry.deidentify.scope import Box
from data_registry.vocabulary import words

if TYPE_CHECKING:
    from pydicom import Dataset

MIN_CHARACTERS = 4
"""Letters and digits that a text must have: fewer are markers of sides, scales and noise."""
MIN_SCORE = 0.3
MAX_HEIGHT, MIN_SURE_SCORE = 50, 0.8
MIN_SIMILARITY = 0.8
"""From which a word read in the pixels is taken for a word of the header."""
_SHORT_SIDE = 384
_MAX_PROJECTED = 16
"""Slices of which the minimum is taken, evenly spread."""
_MARGIN = 2

Image = npt.NDArray[Any]


@dataclass(frozen=True)
class Read:
    """A text in an image."""

    box: Box
    text: str = field(repr=False)


@dataclass(frozen=True)
class SeriesText:
    """What a series shows.

    Args:
        reads: Frame (file, number in it) -> texts; projections under file -1.
        frames_read: Images that were read.
        everything: Whether every frame was read.
    """

    reads: dict[tuple[int, int], list[Read]] = field(repr=False)
    frames_read: int
    everything: bool

    @property
    def flagged(self) -> bool:
        """Whether text was found."""
        return bool(self.reads)


def read_series(
    paths: Sequence[Path], *, every_frame: bool = False, without: Sequence[Box] = ()
) -> SeriesText:
    """Read the text in the pixels of one series.

    Args:
        paths: Its DICOM files.
        every_frame: Read all of them whatever the header says.
        without: Rectangles that are not read.

    Raises:
        ConfigError: CONFIG-06 when rapidocr is not installed.
        DataError: DATA-10 when pixel data cannot be decoded.
    """
    headers = [_header(path) for path in paths]
    order = sorted(range(len(paths)), key=lambda i: _number(headers[i], "InstanceNumber"))
    places = [
        (i, frame) for i in order for frame in range(_number(headers[i], "NumberOfFrames", 1))
    ]
    everything = every_frame or any(_is_likely(header) for header in headers)
    reads: dict[tuple[int, int], list[Read]] = {}
    count = 0
    chosen = places if everything else list(dict.fromkeys((places[0], places[len(places) // 2])))
    frames = _Frames(paths, without)
    for place in chosen:
        found = read_image(display(frames.get(place)))
        count += 1
        if found:
            reads[place] = found
    if not everything and len(places) > 1:
        lowest = _minimum(frames, places)
        if lowest is not None:
            count += 1
            found = read_image(display(lowest))
            if found:
                reads[-1, 0] = found
    return SeriesText(reads, count, everything)


def read_image(image: npt.NDArray[np.uint8]) -> list[Read]:
    """Texts of at least four letters and digits.

    Args:
        image: ``[rows, columns]`` in [0, 255].
    """
    found = _reader()(np.repeat(image[:, :, None], 3, axis=2))
    if found.boxes is None:
        return []
    reads = []
    for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True):
        corners = np.asarray(corners)
        columns, rows = corners[:, 0], corners[:, 1]
        # Letters larger than any scanner writes are anatomy, unless they are read surely.
        large = rows.max() - rows.min() > MAX_HEIGHT and score < MIN_SURE_SCORE
        if sum(character.isalnum() for character in text) >= MIN_CHARACTERS and not large:
            box = (
                max(int(rows.min()) - _MARGIN, 0),
                max(int(columns.min()) - _MARGIN, 0),
                int(np.ceil(rows.max())) + _MARGIN,
                int(np.ceil(columns.max())) + _MARGIN,
            )
            reads.append(Read(box, text))
    return reads


def display(frame: Image) -> npt.NDArray[np.uint8]:
    """A frame as a person would see it: 0.5 % to 99.9 % of its values, gray."""
    gray = frame.astype(np.float32)
    if gray.ndim == 3:
        gray = gray.mean(axis=2)
    low, high = np.percentile(gray, (0.5, 99.9))
    scaled = (gray - low) / max(high - low, 1e-6) * 255
    return np.asarray(scaled.clip(0, 255), dtype=np.uint8)


def is_of_header(text: str, seeds: Sequence[str]) -> bool:
    """Whether every word of four characters is, but for reading errors, one of the header's."""
    known = {word for seed in seeds for word in (*words(seed), "".join(words(seed)))}
    return all(
        any(SequenceMatcher(None, word, other).ratio() >= MIN_SIMILARITY for other in known)
        for word in words(text)
        if len(word) >= MIN_CHARACTERS
    )


def blank(content: bytes, boxes: dict[int, list[Box]], *, everywhere: Sequence[Box] = ()) -> bytes:
    """A DICOM file with rectangles of its frames set to the frame's lowest value.

    Args:
        content: The file; compressed pixel data are written uncompressed.
        boxes: Number of the frame -> rectangles.
        everywhere: Rectangles of all frames.

    Raises:
        DataError: DATA-10 when pixel data cannot be decoded or are no gray values.
    """

    def fill(frames: Image) -> None:
        for number, frame in enumerate(frames):
            lowest = frame.min()
            for top, left, bottom, right in (*everywhere, *boxes.get(number, ())):
                frame[top:bottom, left:right] = lowest

    return edited(content, fill)


def edited(content: bytes, change: Callable[[Image], None]) -> bytes:
    """A DICOM file with other pixels.

    Args:
        content: The file; compressed pixel data are written uncompressed.
        change: Changes the frames ``[frames, rows, columns]`` in place.

    Raises:
        DataError: DATA-10 when pixel data cannot be decoded or are no gray values; what `change`
            raises.
    """
    import io

    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise DataError("DATA-10", "a colour image, whose pixels are not changed.")
    try:
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            dataset.decompress(generate_instance_uid=False)
        shape = (_number(dataset, "NumberOfFrames", 1), int(dataset.Rows), int(dataset.Columns))
        order = ">" if dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.2" else "<"
        kind = "i" if int(dataset.PixelRepresentation) else "u"
        size = int(dataset.BitsAllocated) // 8
        pixels = np.frombuffer(dataset.PixelData, f"{order}{kind}{size}").copy()
        frames = pixels[: shape[0] * shape[1] * shape[2]].reshape(shape)
    except Exception as error:  # decoders raise nearly anything
        raise DataError("DATA-10", f"cannot be decoded ({type(error).__name__}).") from None
    change(frames)
    dataset.PixelData = frames.tobytes() + b"\0" * (frames.nbytes & 1)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


class _Frames:
    """Decoded frames without some rectangles, the file of the last one kept open."""

    def __init__(self, paths: Sequence[Path], without: Sequence[Box]) -> None:
        self._paths, self._without = paths, without
        self._open: tuple[int, Image] | None = None

    def get(self, place: tuple[int, int]) -> Image:
        number, frame = place
        if self._open is None or self._open[0] != number:
            self._open = (number, _decoded(self._paths[number]))
        pixels = np.array(self._open[1][frame])
        for top, left, bottom, right in self._without:
            pixels[top:bottom, left:right] = pixels.min()
        return pixels


def _decoded(path: Path) -> Image:
    """All frames ``[frames, rows, columns]``, or with colours last."""
    import pydicom

    try:
        dataset = pydicom.dcmread(path, force=True)
        pixels = np.asarray(dataset.pixel_array)
    except Exception as error:  # decoders raise nearly anything
        raise DataError("DATA-10", f"cannot be decoded ({type(error).__name__}).") from None
    colours = int(dataset.get("SamplesPerPixel", 1)) > 1
    return pixels if pixels.ndim == (4 if colours else 3) else pixels[None]


def _minimum(frames: _Frames, places: list[tuple[int, int]]) -> Image | None:
    """The lowest value of each pixel over slices of one shape."""
    step = max(1, len(places) // _MAX_PROJECTED)
    lowest: Image | None = None
    for place in places[::step]:
        frame = frames.get(place)
        if lowest is None:
            lowest = frame.copy()
        elif frame.shape == lowest.shape:
            np.minimum(lowest, frame, out=lowest)
    return lowest


def _header(path: Path) -> Dataset:
    import pydicom

    return pydicom.dcmread(path, stop_before_pixels=True, force=True)


def _number(header: Dataset, keyword: str, missing: int = 0) -> int:
    try:
        return int(header.get(keyword) or missing)
    except (TypeError, ValueError):
        return missing


def _is_likely(header: Dataset) -> bool:
    """Whether the header makes text in the pixels likely."""
    kinds = {str(value) for value in header.get("ImageType") or ()}
    return (
        str(header.get("SOPClassUID", "")).startswith("1.2.840.10008.5.1.4.1.1.7")
        or str(header.get("BurnedInAnnotation", "")) == "YES"
        or "ConversionType" in header
        or bool(kinds & {"SECONDARY", "DERIVED"})
        or _number(header, "SamplesPerPixel", 1) > 1
        or _number(header, "BitsAllocated", 16) == 8
    )


@cache
def _reader() -> Any:
    """The engine, one thread, with the models of its wheel: nothing is downloaded."""
    try:
        from rapidocr import RapidOCR
    except ImportError:
        raise ConfigError(
            "CONFIG-06",
            "reading text in pixels needs the packages rapidocr and onnxruntime.",
            fix='Install them with pip install "core-mri[deid]", or give --pixels skip.',
        ) from None
    logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "Global.text_score": MIN_SCORE,
            "Det.limit_side_len": _SHORT_SIDE,
            "Det.limit_type": "min",
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
