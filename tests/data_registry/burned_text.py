"""Text burned into series of images, as workstations do: at one place, in every slice."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Series = npt.NDArray[Any]
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "STIXGeneral.ttf",
)
PLACES = ("top left", "top right", "bottom left", "bottom right", "middle")


@dataclass(frozen=True)
class Burn:
    """How a text was burned in."""

    text: str
    font: str
    size: int
    contrast: float
    place: str


def a_burn(chance: random.Random, sizes: tuple[int, ...] = (8, 10, 12, 16, 24)) -> Burn:
    """Names, numbers and dates as they are shown, three quarters of them in a corner."""
    letters = "".join(chance.choices("ABCDEFGHIJKLMNOPRSTUVWZ", k=6))
    digits = "".join(chance.choices("0123456789", k=8))
    text = chance.choice(
        (f"{letters} {letters[:4]}", f"ID {digits}", f"{letters}^{letters[2:]}", f"MRN:{digits}",
         f"{digits[:2]}-MAR-19{digits[2:4]}", f"19{digits[:6]}", f"{letters} M {digits[:2]}Y")
    )  # fmt: skip
    place = chance.choice(PLACES[:4]) if chance.random() < 0.75 else PLACES[4]
    return Burn(
        text, chance.choice(FONTS), chance.choice(sizes), chance.choice((0.35, 0.6, 1.0)), place
    )


def burn(series: Series, how: Burn) -> Series | None:
    """The series with the text; None where it does not fit.

    Args:
        series: ``[slices, rows, columns]``.
        how: Text, font, size in pixels, contrast as part of the bright tissue, place.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(str(fonts / how.font), how.size)
    _, rows, columns = series.shape
    canvas = Image.new("L", (columns, rows), 0)
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = draw.textbbox((0, 0), how.text, font=font)
    width, height = right - left, bottom - top
    if width > columns - 6 or height > rows - 6:
        return None
    x = {"left": 3, "right": columns - width - 3}.get(how.place.split()[-1], (columns - width) // 2)
    y = {"top": 3, "bottom": rows - height - 3}.get(how.place.split()[0], (rows - height) // 2)
    draw.text((x - left, y - top), how.text, fill=255, font=font)
    mask = np.asarray(canvas, dtype=np.float32) / 255
    bright = float(np.percentile(series, 99.5))
    written = series + mask * how.contrast * bright
    return np.asarray(written.clip(0, max(bright * 1.2, float(series.max()))), dtype=series.dtype)


def write_series(series: Series, folder: Path, seed: str, **facts: Any) -> list[Path]:
    """As DICOM, with the names and dates that `facts` give."""
    import pydicom

    from core_mri.files.dicom_write import write_dicom_series
    from core_mri.volume import Volume

    array = np.zeros((*series.shape[1:], len(series)), np.uint16)
    volume = Volume(array, np.diag([1.0, 1.0, 3.0, 1.0]))
    write_dicom_series(volume, folder, facts={"Modality": "MR", "PatientID": "1"}, seed=seed)
    paths = sorted(folder.rglob("*.dcm"))
    for path in paths:
        dataset = pydicom.dcmread(path)
        # The writer turns voxels to the patient; text must stay readable.
        frame = np.ascontiguousarray(series[int(dataset.InstanceNumber) - 1], dtype=np.uint16)
        dataset.Rows, dataset.Columns = frame.shape
        dataset.PixelData = frame.tobytes()
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        for keyword, value in facts.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)
    return paths
