"""Synthetic MRI volumes with labels for tests, dry runs and the demo.

Anatomy comes from `core_mri.physics.anatomy`; tissue signals from the steady state equations of
spin echo, inversion recovery and balanced SSFP; then a smooth receive field and Rician noise, as in
a magnitude image. Everything made here is synthetic and must be called so wherever it is shown.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.physics.anatomy import LABELS, PAINTERS, Canvas
from core_mri.volume import SLICE_ORIENTATION, FactValue, Plane, Volume

__all__ = ["LABELS", "REGIONS", "SEQUENCES", "phantom_volume"]

REGIONS: tuple[str, ...] = tuple(PAINTERS)
"""Body regions a phantom can show."""

_TISSUES: dict[str, tuple[float, float, float]] = {
    "air": (1000, 50, 0.0),
    "bone": (400, 2, 0.1),
    "marrow": (320, 70, 0.75),
    "fat": (300, 85, 0.9),
    "visceral fat": (300, 75, 0.85),
    "skin": (450, 35, 0.7),
    "muscle": (950, 40, 0.8),
    "tendon": (600, 8, 0.5),
    "cartilage": (1050, 45, 0.8),
    "disc": (900, 60, 0.7),
    "nucleus": (1200, 110, 0.85),
    "gray": (1000, 100, 0.82),
    "white": (650, 80, 0.7),
    "csf": (4000, 1800, 1.0),
    "lesion": (1400, 170, 0.9),
    "blood": (1400, 240, 0.9),
    "myocardium": (950, 50, 0.8),
    "lung": (1200, 20, 0.12),
    "liver": (570, 45, 0.75),
    "spleen": (1000, 70, 0.85),
    "kidney cortex": (950, 85, 0.85),
    "kidney medulla": (1350, 100, 0.9),
    "bowel": (900, 70, 0.6),
    "urine": (3500, 900, 1.0),
    "gland": (1000, 65, 0.8),
    "peripheral zone": (1500, 150, 0.9),
    "transition zone": (1200, 85, 0.85),
}
"""T1 in ms, T2 in ms and proton density relative to water: typical of 1.5 T, rounded from the
ranges in Bojorquez et al., Magn. Reson. Imaging 35:69 (2017) and Stanisz et al., MRM 54:507 (2005);
fat and marrow carry the longer apparent T2 that they show in fast spin echo."""


@dataclass(frozen=True)
class _Sequence:
    """A pulse sequence: ms and degrees; `ti` 0 means no inversion, `flip` 90 a spin echo."""

    description: str
    tr: float
    te: float
    ti: float = 0.0
    flip: float = 90.0


_SEQUENCES = {
    "T1": _Sequence("t1_se", 520, 12),
    "T2": _Sequence("t2_tse", 4500, 95),
    "PD": _Sequence("pd_tse", 3000, 28),
    "FLAIR": _Sequence("t2_flair", 9000, 110, ti=2450),
    "STIR": _Sequence("stir", 5000, 45, ti=170),
    "CINE": _Sequence("cine_bssfp", 3.2, 1.6, flip=55.0),
}
SEQUENCES: tuple[str, ...] = tuple(_SEQUENCES)
"""Contrasts a phantom can have; every region can be made with every one."""


@dataclass(frozen=True)
class _Protocol:
    """How a region is usually scanned: field of view and slice spacing in mm."""

    plane: Plane
    body_part: str
    fov: float
    slice_spacing: tuple[float, float]
    coverage: float
    rotation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    surface_coil: bool = False


_PROTOCOLS = {
    "brain": _Protocol("axial", "BRAIN", 230, (3, 6.5), 120),
    "heart": _Protocol("axial", "HEART", 340, (8, 10), 96, rotation=(40, 25, 0)),
    "abdomen": _Protocol("axial", "ABDOMEN", 380, (5, 8), 150),
    "prostate": _Protocol("axial", "PROSTATE", 200, (3, 4), 60),
    "knee": _Protocol("sagittal", "KNEE", 160, (3, 6), 84, surface_coil=True),
    "thigh": _Protocol("axial", "THIGH", 220, (5, 10), 200),
    "spine": _Protocol("sagittal", "LSPINE", 260, (3.5, 5), 66, surface_coil=True),
    "breast": _Protocol("axial", "BREAST", 340, (2, 6), 100, surface_coil=True),
    "shoulder": _Protocol("coronal", "SHOULDER", 170, (3, 5), 60, surface_coil=True),
}


def phantom_volume(
    region: str,
    subject: int,
    sequence: str = "T1",
    *,
    size: int = 96,
    num_slices: int = 12,
    seed: int = 0,
) -> tuple[Volume, Volume]:
    """A synthetic scan and its labels.

    The same `(region, subject, seed)` is the same anatomy on the same grid whatever the sequence,
    so the labels of all sequences of a subject are equal; the same arguments give the same bytes.

    Args:
        region: One of :data:`REGIONS`.
        subject: Number of the synthetic subject, 0 or greater.
        sequence: One of :data:`SEQUENCES`.
        size: Rows and columns of a slice.
        num_slices: Number of slices.
        seed: Another population of subjects, 0 or greater.

    Returns:
        Image (uint16) and labels (uint8, values of ``LABELS[region]``), both of shape
        ``(size, size, num_slices)``: column, row, slice of the plane usual for the region, slightly
        oblique.

    Raises:
        DataError: DATA-03 when there is no such region or sequence.
    """
    for name, value, known in (("region", region, REGIONS), ("sequence", sequence, SEQUENCES)):
        if value not in known:
            raise DataError(
                "DATA-03", f"no phantom {name} {value!r}.", fix=f"Known: {', '.join(known)}."
            )
    entropy = (zlib.crc32(region.encode()), subject, seed)
    anatomy_rng = np.random.default_rng(entropy)
    scan_rng = np.random.default_rng((*entropy, SEQUENCES.index(sequence)))
    protocol = _PROTOCOLS[region]

    affine = _affine(protocol, size, num_slices, anatomy_rng)
    settings, signal = _signals(_SEQUENCES[sequence], anatomy_rng, scan_rng)
    canvas = Canvas(
        _anatomical_points(affine, (size, size, num_slices), protocol, anatomy_rng),
        signal,
        softness_mm=1.2 * protocol.fov / size,
    )
    PAINTERS[region](canvas, anatomy_rng)
    image = _acquire(canvas, protocol, scan_rng)
    facts: dict[str, FactValue] = {
        "Modality": "MR",
        "Manufacturer": "core-mri synthetic",
        "MagneticFieldStrength": 1.5,
        "BodyPartExamined": protocol.body_part,
        "SeriesDescription": f"synthetic {region} {settings.description}",
        "ScanningSequence": "IR" if settings.ti else "GR" if settings.flip != 90 else "SE",
        "MRAcquisitionType": "2D",
        "ImageType": "ORIGINAL\\PRIMARY\\M",
        "PatientID": f"synthetic-{region}-{seed}-{subject}",
        "RepetitionTime": settings.tr,
        "EchoTime": settings.te,
        "FlipAngle": settings.flip,
    }
    if settings.ti:
        facts["InversionTime"] = settings.ti
    return (
        Volume(image, affine, facts=facts),
        Volume(canvas.label, affine, kind="label", facts=facts),
    )


def _rotation(degrees: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Rotation about x, then y, then z."""
    (a, b, c), (u, v, w) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_x = np.array([[1, 0, 0], [0, a, -u], [0, u, a]])
    about_y = np.array([[b, 0, v], [0, 1, 0], [-v, 0, b]])
    about_z = np.array([[c, -w, 0], [w, c, 0], [0, 0, 1]])
    rotation: npt.NDArray[np.float64] = about_z @ about_y @ about_x
    return rotation


def _affine(
    protocol: _Protocol, size: int, num_slices: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Index to RAS+ mm of a slightly oblique stack: column, row, slice as DICOM orders them."""
    directions = np.zeros((3, 3))
    for axis, code in enumerate(reversed(SLICE_ORIENTATION[protocol.plane])):
        directions["RLAPSI".index(code) // 2, axis] = 1 if code in "RAS" else -1
    directions[:, 2] = np.cross(directions[:, 0], directions[:, 1])
    tilt = _rotation(np.clip(rng.normal(0, 4, size=3), -10, 10))
    fov = protocol.fov * rng.uniform(0.95, 1.08)
    across = np.clip(protocol.coverage / num_slices, *protocol.slice_spacing)
    # Small matrices have wide pixels; slices stay thicker, so that the plane can be told.
    across = max(across, 1.4 * fov / size)
    # Scanners state spacings with few decimals.
    spacing = np.round([fov / size, fov / size, across], 4)
    affine = np.eye(4)
    affine[:3, :3] = tilt @ _rotation(protocol.rotation) @ directions * spacing
    isocenter = rng.normal(0, (8, 12, 10))
    middle = (np.array([size, size, num_slices]) - 1) / 2
    affine[:3, 3] = isocenter - affine[:3, :3] @ middle
    return affine


def _anatomical_points(
    affine: npt.NDArray[np.float64],
    shape: tuple[int, int, int],
    protocol: _Protocol,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Where each voxel lies in the anatomy, after the subject's own pose, size and deformation."""
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    pose = _rotation(rng.normal(0, 2.5, size=3)) @ _rotation(protocol.rotation).T
    pose = pose / rng.normal(1, 0.04, size=(3, 1))
    if protocol.body_part in ("KNEE", "THIGH", "SHOULDER") and rng.random() < 0.5:
        pose[0] *= -1  # the other side of the body
    matrix = (pose @ affine[:3, :3]).astype(np.float32)
    shift = (pose @ (affine[:3, 3] - middle) + rng.normal(0, 0.012 * protocol.fov, 3)).astype(
        np.float32
    )
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    points = np.empty((3, *shape), dtype=np.float32)
    for axis in range(3):
        a, b, c = matrix[axis]
        points[axis] = a * i.astype(np.float32) + b * j.astype(np.float32)
        points[axis] += c * k.astype(np.float32) + shift[axis]
    # Plane waves of half to one field of view and of at most 1.6 % amplitude: smooth, invertible.
    moved = points.copy()
    for axis in range(3):
        for _ in range(2):
            wave = rng.normal(size=3)
            wave *= 2 * np.pi / (rng.uniform(0.5, 1) * protocol.fov) / np.linalg.norm(wave)
            a, b, c = wave.astype(np.float32)
            angle = a * points[0] + b * points[1] + c * points[2]
            amplitude = np.float32(rng.uniform(0.004, 0.016) * protocol.fov)
            moved[axis] += amplitude * np.sin(angle + np.float32(rng.uniform(0, 2 * np.pi)))
    return moved


def _signals(
    nominal: _Sequence, anatomy_rng: np.random.Generator, scan_rng: np.random.Generator
) -> tuple[_Sequence, dict[str, float]]:
    """The settings used in this scan and the signal of each tissue under them.

    Spin echo ``PD (1 - exp(-TR/T1)) exp(-TE/T2)``; inversion recovery
    ``PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)``; balanced SSFP of flip angle a, TR << T2:
    ``PD sin(a) / (1 + cos(a) + (1 - cos(a)) T1/T2) exp(-TE/T2)``
    (Bernstein, King, Zhou, Handbook of MRI Pulse Sequences, 2004, chapters 14.1 and 14.2).
    """
    jitter = scan_rng.uniform(0.92, 1.08, size=3)
    used = _Sequence(
        nominal.description,
        round(float(nominal.tr * jitter[0]), 1),
        round(float(nominal.te * jitter[1]), 2),
        round(float(nominal.ti * jitter[2]), 1),
        nominal.flip,
    )
    angle = np.deg2rad(used.flip)
    signal = {}
    for tissue, (t1, t2, density) in _TISSUES.items():
        t1, t2 = t1 * anatomy_rng.normal(1, 0.05), t2 * anatomy_rng.normal(1, 0.05)
        if used.flip != 90:
            steady = np.sin(angle) / (1 + np.cos(angle) + (1 - np.cos(angle)) * t1 / t2)
        elif used.ti:
            steady = abs(1 - 2 * np.exp(-used.ti / t1) + np.exp(-used.tr / t1))
        else:
            steady = 1 - np.exp(-used.tr / t1)
        signal[tissue] = float(density * steady * np.exp(-used.te / t2))
    return used, signal


def _acquire(
    canvas: Canvas, protocol: _Protocol, rng: np.random.Generator
) -> npt.NDArray[np.uint16]:
    """Magnitude image as a scanner stores it: texture, receive field, gain, Rician noise."""
    shape = canvas.image.shape
    grain = rng.standard_normal(shape, dtype=np.float32)
    for axis in (0, 1):
        grain += np.roll(grain, 1, axis)
    image = canvas.image * (1 + np.float32(0.02) * grain)
    field = np.float32(rng.uniform(0.06, 0.2)) * canvas.waves(rng, 1.6 * protocol.fov, 2)
    if protocol.surface_coil:
        # A loop behind or in front of the part: sensitivity falls with distance from it.
        field += np.float32(rng.choice((-1, 1)) * rng.uniform(0.3, 0.9) / protocol.fov) * canvas.y
    image *= np.exp(field)
    image /= np.quantile(image[::3, ::3], 0.99)
    sigma = np.float32(rng.uniform(0.008, 0.03))
    noise = rng.standard_normal((2, *shape), dtype=np.float32)
    image = np.hypot(image + sigma * noise[0], sigma * noise[1])
    gain = np.float32(rng.uniform(500, 2500))
    stored: npt.NDArray[np.uint16] = np.minimum(np.rint(gain * image), 65535).astype(np.uint16)
    return stored
