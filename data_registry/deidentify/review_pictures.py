"""How an item of a review is shown: a picture that holds all that text or a face could show in."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt

from core_mri.errors import CoreMRIError, DataError
from data_registry.deidentify.burned_in import display
from data_registry.deidentify.review_items import Item

_HEIGHT, _THUMB = 320, 128
_MAX_FRAMES, _MAX_THUMBS = 24, 16

Gray = npt.NDArray[np.uint8]


def picture(item: Item) -> str:
    """The picture of a volume, as a data URI of a PNG.

    Above: first and middle slice, and the lowest values of all slices. Then a middle plane of each
    direction, at equal scale, where the slices form one volume. Below: slices, evenly spread.

    Raises:
        DataError: DATA-10 when the pixels cannot be decoded.
    """
    from PIL import Image

    frames = _frames(item)
    views = [frames[0], frames[len(frames) // 2], np.min(frames, axis=0)]
    rows = [_row([display(view) for view in views], _HEIGHT)]
    rows += [_row(planes, _HEIGHT)] if (planes := _planes(item)) else []
    shown = frames[:: -(-len(frames) // _MAX_THUMBS)] if len(frames) > 3 else []
    rows += [_row([display(f) for f in shown[i : i + 8]], _THUMB) for i in range(0, len(shown), 8)]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 4), (0, width - row.shape[1]))) for row in rows]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(padded)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def header(item: Item) -> list[tuple[str, str]]:
    """Every attribute of the first file that holds text, a name, a date or an id, nested too.

    Raises:
        DataError: DATA-02 when the header cannot be read.
    """
    first = item.files[0]
    if not _is_dicom(item):
        from core_mri import read_volume

        volume = read_volume(first)
        return [("shape", str(volume.shape)), *((k, str(v)) for k, v in volume.facts.items())]
    import pydicom

    dataset = pydicom.dcmread(first, stop_before_pixels=True, force=True)
    rows = []
    for element in dataset.iterall():
        if element.VR in ("SQ", "OB", "OW", "UN", "US", "FD", "FL", "SS", "UL", "SL", "DS", "IS"):
            continue
        value = str(element.value)
        if value and not value.startswith("1.2.840.10008."):
            rows.append((element.name, value[:200]))
    return rows


def _is_dicom(item: Item) -> bool:
    return not item.files[0].name.lower().endswith((".nii", ".nii.gz"))


def _frames(item: Item) -> list[npt.NDArray[Any]]:
    """Slices of one shape, evenly spread."""
    from core_mri import read_volume

    try:
        if not _is_dicom(item):
            array = np.asarray(read_volume(item.files[0]).array)
            array = array.reshape(*array.shape[:3], -1)[..., 0]
            slices = list(np.moveaxis(array, int(np.argmin(array.shape)), 0))
        else:
            slices = _dicom_frames(item)
    except CoreMRIError:
        raise
    except Exception as error:  # decoders raise nearly anything
        raise DataError("DATA-10", f"cannot be decoded ({type(error).__name__}).") from None
    same = [frame for frame in slices if frame.shape == slices[0].shape]
    return same[:: -(-len(same) // _MAX_FRAMES)]


def _dicom_frames(item: Item) -> list[npt.NDArray[Any]]:
    import pydicom

    chosen = item.files[:: -(-len(item.files) // _MAX_FRAMES)]
    loaded = [pydicom.dcmread(path, force=True) for path in chosen]
    loaded.sort(key=lambda dataset: int(dataset.get("InstanceNumber") or 0))
    slices: list[npt.NDArray[Any]] = []
    for dataset in loaded:
        pixels = np.asarray(dataset.pixel_array)
        colours = int(dataset.get("SamplesPerPixel", 1)) > 1
        gray = pixels.mean(axis=-1) if colours else pixels
        slices += list(gray) if gray.ndim == 3 else [gray]
    return slices


def _planes(item: Item) -> list[Gray]:
    """Middle planes across, from the front and from the side; none where there is no volume."""
    from core_mri import read_volume

    try:
        volume = read_volume(item.files if _is_dicom(item) else item.files[0]).reorient("RAS")
    except CoreMRIError:
        return []
    array = np.asarray(volume.array)
    array = array.reshape(*array.shape[:3], -1)[..., 0]
    if min(array.shape) < 4:
        return []
    planes = []
    for axis in (2, 1, 0):
        plane = np.take(array, array.shape[axis] // 2, axis)
        across, up = (volume.spacing_mm[i] for i in range(3) if i != axis)
        repeat = max(1, round(up / across)), max(1, round(across / up))
        planes.append(display(plane.T[::-1].repeat(repeat[0], 0).repeat(repeat[1], 1)))
    return planes


def _row(images: list[Gray], height: int) -> Gray:
    """Images side by side at one height."""
    from PIL import Image

    tiles = []
    for pixels in images:
        image = Image.fromarray(pixels)
        width = max(1, round(image.width * height / image.height))
        tiles.append(np.asarray(image.resize((width, height))))
    return np.concatenate(tiles, axis=1)
