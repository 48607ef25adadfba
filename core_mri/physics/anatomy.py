"""Synthetic anatomy: smooth parametric bodies painted on a canvas of RAS+ millimetre points.

Every region is a list of ellipsoids, tubes and layers whose sizes, positions and side vary with the
subject. The shapes are schematic: they have the topology, tissues and rough dimensions (mm) of the
region, which is enough to test and to demonstrate, and no more. They are synthetic, never patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
Triple = Sequence[float] | npt.NDArray[np.float64]

LABELS: dict[str, dict[int, str]] = {
    "brain": {1: "csf", 2: "gray matter", 3: "white matter", 4: "lesion"},
    "heart": {1: "left ventricle", 2: "myocardium", 3: "right ventricle"},
    "abdomen": {1: "liver", 2: "spleen", 3: "right kidney", 4: "left kidney", 5: "aorta"},
    "prostate": {1: "peripheral zone", 2: "transition zone", 3: "bladder"},
    "knee": {1: "femur", 2: "tibia", 3: "patella", 4: "cartilage"},
    "thigh": {1: "femur", 2: "muscle", 3: "subcutaneous fat"},
    "spine": {1: "vertebra", 2: "disc", 3: "spinal cord"},
    "breast": {1: "fibroglandular tissue", 2: "lesion"},
    "shoulder": {1: "humerus", 2: "scapula", 3: "rotator cuff"},
}
"""Meaning of every label value, by region; 0 is everything else."""


class Canvas:
    """Points of a voxel grid on which bodies are painted one over the other.

    Edges are one `softness_mm` wide ramps, so that voxels on a boundary hold a mixture as in a
    real image (partial volume); the label changes where a body fills half of the voxel.

    Args:
        points: Anatomical coordinates of the voxels, RAS+ mm, shape ``(3, I, J, K)``.
        signal: Signal of each tissue in arbitrary units.
        softness_mm: Width of an edge.
    """

    def __init__(self, points: Field, signal: Mapping[str, float], softness_mm: float) -> None:
        self.x, self.y, self.z = points
        self.signal = signal
        self.softness_mm = softness_mm
        self.image = np.full(points.shape[1:], signal["air"], dtype=np.float32)
        self.label = np.zeros(points.shape[1:], dtype=np.uint8)

    def ellipsoid(self, center: Triple, radii: Triple, *, power: int = 2) -> Field:
        """Approximate signed distance in mm (negative inside) to a (super)ellipsoid.

        Exact on the surface and along the smallest axis; elsewhere the true distance times a
        factor near one.

        Args:
            center: mm. An axis whose radius is infinite is ignored, which makes a tube.
            radii: Half axes, mm.
            power: Even; 2 is an ellipsoid, 4 a box with rounded corners.
        """
        total: Field | None = None
        for axis, middle, radius in zip((self.x, self.y, self.z), center, radii, strict=True):
            if np.isinf(radius):
                continue
            term = (axis - np.float32(middle)) * np.float32(1 / radius)
            term *= term
            if power == 4:
                term *= term
            total = term if total is None else total + term
        if total is None:
            raise ValueError("at least one radius must be finite")
        root = np.sqrt(total)
        if power == 4:
            root = np.sqrt(root)
        distance: Field = (root - np.float32(1)) * np.float32(min(radii))
        return distance

    def paint(self, distance: Field, tissue: str, label: int = 0) -> None:
        """Fill the inside of `distance` (mm, negative inside) with a tissue and a label value."""
        fraction = np.clip(0.5 - distance / np.float32(self.softness_mm), 0, 1)
        self.image += fraction * (np.float32(self.signal[tissue]) - self.image)
        self.label[distance < 0] = label

    def waves(self, rng: np.random.Generator, wavelength_mm: float, count: int = 3) -> Field:
        """A smooth random field in [-1, 1] made of `count` plane waves."""
        total: Field = np.zeros_like(self.x)
        for _ in range(count):
            direction = rng.normal(size=3)
            direction *= 2 * np.pi / wavelength_mm / np.linalg.norm(direction)
            a, b, c = (np.float32(d) for d in direction)
            phase = np.float32(rng.uniform(0, 2 * np.pi))
            total += np.sin(a * self.x + b * self.y + c * self.z + phase)
        total /= np.float32(count)
        return total


INF = float("inf")


def _brain(canvas: Canvas, rng: np.random.Generator) -> None:
    width, length, height = rng.normal((74, 94, 92), (3, 4, 3))
    head = canvas.ellipsoid((0, 0, 0), (width, length, height))
    folds = canvas.waves(rng, 22, 4)
    fissure = np.abs(canvas.x) - np.float32(1.2)
    canvas.paint(head, "fat")
    canvas.paint(head + 5, "bone")
    canvas.paint(head + 7, "marrow")
    canvas.paint(head + 9, "bone")
    canvas.paint(head + 11, "csf", 1)
    cortex = np.maximum(head + 14 + 2 * folds, -fissure)
    canvas.paint(cortex, "gray", 2)
    canvas.paint(cortex + 8 + 6 * canvas.waves(rng, 24, 5), "white", 3)
    ventricle = rng.uniform(3.5, 8)
    for side in (-1, 1):
        canvas.paint(canvas.ellipsoid((side * 22, 0, 2), (7, 17, 14)), "gray", 2)
        canvas.paint(canvas.ellipsoid((side * 10, -16, 6), (8, 12, 10)), "gray", 2)
        body = canvas.ellipsoid((side * (ventricle + 2), 4, 16), (ventricle, 32, 11))
        canvas.paint(body, "csf", 1)
    if rng.random() < 0.5:
        center = (rng.choice((-1, 1)) * rng.uniform(22, 40), *rng.uniform((-45, 0), (40, 35)))
        lesion = canvas.ellipsoid(center, rng.uniform(6, 16, size=3))
        canvas.paint(lesion + 2 * canvas.waves(rng, 20), "lesion", 4)


def _heart(canvas: Canvas, rng: np.random.Generator) -> None:
    # Short axis frame: z from apex to base, x towards the septum, y towards the front.
    canvas.paint(canvas.ellipsoid((10, 10, 0), (165, 120, INF), power=4), "fat")
    canvas.paint(canvas.ellipsoid((10, 10, 0), (150, 105, INF), power=4), "muscle")
    canvas.paint(canvas.ellipsoid((95, 10, 0), (70, 95, INF)), "lung")
    canvas.paint(canvas.ellipsoid((-85, 5, 0), (60, 90, INF)), "lung")
    canvas.paint(canvas.ellipsoid((10, -75, -30), (90, 45, 90)), "liver")
    radius, wall = rng.uniform(20, 30), rng.uniform(8, 13)
    # The ventricle narrows towards the apex at z = -50.
    taper = np.sqrt(np.clip((canvas.z + 52) / 70, 0.02, 1)).astype(np.float32)
    outer = np.hypot(canvas.x, canvas.y)
    bend = rng.uniform(0.9, 1.1)
    right = canvas.ellipsoid((radius + 16, 8, 8), (26 * bend, 34, 55))
    pericardium = canvas.ellipsoid((14, 4, 0), (radius + 34, radius + 24, 70))
    canvas.paint(pericardium, "fat")
    canvas.paint(right - 3, "muscle")
    canvas.paint(right, "blood", 3)
    canvas.paint(outer - (radius + wall) * taper, "myocardium", 2)
    canvas.paint(outer - radius * taper, "blood", 1)
    for angle in rng.uniform((2.4, 4.2), (3.2, 5.0)):
        place = (0.62 * radius * np.cos(angle), 0.62 * radius * np.sin(angle), 0)
        canvas.paint(canvas.ellipsoid(place, (4, 4, 22)), "myocardium", 1)


def _abdomen(canvas: Canvas, rng: np.random.Generator) -> None:
    wide, deep = rng.uniform((145, 95), (170, 115))
    skin = canvas.ellipsoid((0, 0, 0), (wide, deep, INF))
    fat = rng.uniform(10, 26)
    canvas.paint(skin, "fat")
    canvas.paint(skin + fat, "muscle")
    inside = skin + fat + 9
    canvas.paint(inside, "visceral fat")
    for _ in range(6):
        place = rng.uniform((-60, 5, -80), (60, 60, 10))
        loop = canvas.ellipsoid(place, rng.uniform(12, 22, size=3))
        canvas.paint(np.maximum(loop, inside + 3), "bowel")
    canvas.paint(canvas.ellipsoid((0, -0.5 * deep, 0), (22, 18, INF)), "marrow")
    canvas.paint(canvas.ellipsoid((0, -0.5 * deep - 24, 0), (9, 9, INF)), "csf")
    for side in (-1, 1):
        canvas.paint(canvas.ellipsoid((side * 38, -0.45 * deep, 0), (17, 17, INF)), "muscle")
        canvas.paint(canvas.ellipsoid((side * 40, -0.78 * deep, 0), (30, 15, INF)), "muscle")
    stomach = canvas.ellipsoid((-45, 25, 40), (35, 25, 40))
    canvas.paint(np.maximum(stomach, inside + 2), "bowel")
    lobe = rng.normal((70, 15, 40), 5)
    liver = np.minimum(
        canvas.ellipsoid(lobe, rng.normal((62, 62, 68), 4)),
        canvas.ellipsoid(lobe + np.array((-50, 20, 5)), (45, 30, 35)),
    )
    canvas.paint(np.maximum(liver, inside + 2), "liver", 1)
    spleen = canvas.ellipsoid(rng.normal((-95, -25, 45), 5), rng.normal((24, 42, 48), 3))
    canvas.paint(np.maximum(spleen, inside + 2), "spleen", 2)
    for side, label in ((1, 3), (-1, 4)):
        place = rng.normal((side * 68, -0.38 * deep, -8 - 5 * side), 4)
        kidney = canvas.ellipsoid(place, rng.normal((24, 26, 52), 2))
        canvas.paint(kidney, "kidney cortex", label)
        canvas.paint(kidney + 8, "kidney medulla", label)
        pelvis = canvas.ellipsoid(place - np.array((side * 9, 0, 0)), (9, 7, 18))
        canvas.paint(pelvis, "visceral fat", label)
    canvas.paint(canvas.ellipsoid((18, -0.5 * deep + 26, 0), (12, 9, INF)), "blood")
    canvas.paint(canvas.ellipsoid((-10, -0.5 * deep + 26, 0), (10, 10, INF)), "blood", 5)


def _prostate(canvas: Canvas, rng: np.random.Generator) -> None:
    skin = canvas.ellipsoid((0, 0, 0), (175, 110, INF))
    canvas.paint(skin, "fat")
    canvas.paint(skin + rng.uniform(12, 25), "muscle")
    canvas.paint(canvas.ellipsoid((0, 0, 10), (62, 72, 90)), "visceral fat")
    for side in (-1, 1):
        canvas.paint(canvas.ellipsoid((side * 88, 0, -5), (30, 30, 34)), "marrow")
        canvas.paint(canvas.ellipsoid((side * 58, 10, 0), (11, 42, INF)), "muscle")
        canvas.paint(canvas.ellipsoid((side * 28, 62, -20), (26, 12, 25)), "marrow")
    rectum = canvas.ellipsoid((rng.normal(0, 2), -38, 0), (15, 13, INF))
    canvas.paint(rectum, "muscle")
    canvas.paint(rectum + 4, "bowel")
    canvas.paint(canvas.ellipsoid((0, -92, 0), (20, 12, INF)), "marrow")
    bladder = canvas.ellipsoid((0, 20, 52), rng.normal((40, 32, 30), 3))
    canvas.paint(bladder - 3, "muscle")
    canvas.paint(bladder, "urine", 3)
    size = rng.uniform(0.85, 1.25)
    place = rng.normal((0, 0, 0), 2)
    gland = canvas.ellipsoid(place, np.array((27, 21, 24)) * size)
    canvas.paint(gland - 1.5, "muscle")
    canvas.paint(gland, "peripheral zone", 1)
    central = canvas.ellipsoid(place + np.array((0, 6 * size, 3)), np.array((19, 14, 18)) * size)
    canvas.paint(central + 1.5 * canvas.waves(rng, 14), "transition zone", 2)


def _knee(canvas: Canvas, rng: np.random.Generator) -> None:
    leg = canvas.ellipsoid((0, -8, 0), (62, 66, INF))
    canvas.paint(leg, "fat")
    canvas.paint(leg + rng.uniform(5, 11), "muscle")
    canvas.paint(canvas.ellipsoid((0, 40, -8), (32, 20, 26)), "fat")
    canvas.paint(canvas.ellipsoid((0, -42, 5), (7, 7, INF)), "blood")
    size = rng.uniform(0.92, 1.08)
    gap = rng.uniform(2.2, 4)
    condyles = np.minimum(
        canvas.ellipsoid((-22, -4, 20), np.array((21, 31, 22)) * size),
        canvas.ellipsoid((22, -4, 20), np.array((21, 31, 22)) * size),
    )
    shaft = np.maximum(canvas.ellipsoid((0, 2, 0), (17 * size, 16 * size, INF)), 14 - canvas.z)
    femur = np.minimum(condyles, shaft)
    plateau = canvas.ellipsoid((0, -6, -18), np.array((38, 27, 14)) * size, power=4)
    stem = canvas.ellipsoid((0, -2, 0), (16 * size, 18 * size, INF))
    tibia = np.minimum(plateau, np.maximum(stem, canvas.z + 20))
    patella = canvas.ellipsoid((0, 44, 22), np.array((20, 10, 21)) * size)
    tendon = np.maximum(np.abs(canvas.y - 48) - 3, np.abs(canvas.x) - 14)
    canvas.paint(tendon, "tendon")
    cartilage = np.minimum(
        np.maximum(condyles - gap, canvas.z - 26),
        np.maximum(plateau - gap, -8 - canvas.z),
    )
    behind = np.maximum(patella - gap, canvas.y - 41)
    canvas.paint(np.minimum(cartilage, behind), "cartilage", 4)
    for body, label in ((femur, 1), (tibia, 2), (patella, 3)):
        canvas.paint(body, "bone", label)
        canvas.paint(body + 1.8, "marrow", label)
    cruciate = np.abs(canvas.y - 0.6 * canvas.z + 4) - 4
    canvas.paint(
        np.maximum(cruciate, np.maximum(np.abs(canvas.x) - 7, np.abs(canvas.z - 4) - 13)), "tendon"
    )


def _thigh(canvas: Canvas, rng: np.random.Generator) -> None:
    radius = rng.uniform(72, 92)
    skin = canvas.ellipsoid((0, 0, 0), (radius, 0.95 * radius, INF))
    fat = rng.uniform(7, 20)
    canvas.paint(skin, "skin")
    canvas.paint(skin + 2, "fat", 3)
    muscle = skin + fat + 2 * canvas.waves(rng, 60)
    canvas.paint(muscle, "muscle", 2)
    place = rng.normal((0, 6, 0), 3)
    angles = np.arctan2(canvas.y - place[1], canvas.x - place[0])
    # Fat between the muscle compartments: thin rays around the bone.
    rays = np.abs(np.sin(2.5 * angles + rng.uniform(0, 6))) * np.hypot(canvas.x, canvas.y) * 0.4
    septa = np.maximum(rays - rng.uniform(0.8, 2), muscle + 3)
    canvas.paint(septa, "visceral fat")
    canvas.paint(canvas.ellipsoid(place + np.array((24, -14, 0)), (6, 6, INF)), "blood")
    bone = canvas.ellipsoid(place, (*rng.uniform(13, 16, size=2), INF))
    canvas.paint(bone, "bone", 1)
    canvas.paint(bone + 5, "marrow", 1)


def _spine(canvas: Canvas, rng: np.random.Generator) -> None:
    curve = np.float32(rng.uniform(8, 18)) * np.sin(
        canvas.z * np.float32(2 * np.pi / rng.uniform(240, 320)) + np.float32(rng.uniform(-1, 1))
    )
    canvas.y = canvas.y - curve
    canvas.paint(canvas.ellipsoid((0, 0, 0), (150, 100, INF)), "fat")
    canvas.paint(canvas.ellipsoid((0, 20, 0), (140, 95, INF)), "visceral fat")
    canvas.paint(np.maximum(np.abs(canvas.x) - 60, np.abs(canvas.y + 52) - 22), "muscle")
    canvas.paint(canvas.ellipsoid((-6, 34, 0), (10, 10, INF)), "blood")
    pitch = rng.uniform(31, 36)
    disc = rng.uniform(7, 10)
    level = canvas.z + np.float32(rng.uniform(0, pitch))
    along = (level + pitch / 2) % np.float32(pitch) - np.float32(pitch / 2)
    column = canvas.ellipsoid((0, 0, 0), (24, 17, INF))
    canvas.paint(column, "bone")
    body = np.maximum(column + 1.5, disc / 2 - np.abs(along))
    canvas.paint(np.maximum(column, np.abs(along) - disc / 2), "disc", 2)
    canvas.paint(np.maximum(column + 7, np.abs(along) - disc / 3), "nucleus", 2)
    canvas.paint(body + 1, "marrow", 1)
    canal = canvas.ellipsoid((0, -28, 0), (11, 9, INF))
    canvas.paint(canal, "csf")
    canvas.paint(canvas.ellipsoid((0, -28, 0), (5.5, 4.5, INF)), "white", 3)
    process = np.maximum(np.abs(canvas.x) - 4, np.abs(canvas.y + 50) - 12)
    canvas.paint(np.maximum(process, 9 - np.abs(along + 8)), "marrow")
    canvas.y = canvas.y + curve


def _breast(canvas: Canvas, rng: np.random.Generator) -> None:
    chest = canvas.ellipsoid((0, -95, 0), (165, 105, INF))
    canvas.paint(chest, "fat")
    canvas.paint(chest + 8, "muscle")
    canvas.paint(chest + 22, "lung")
    canvas.paint(canvas.ellipsoid((-18, -70, -20), (50, 45, 60)), "blood")
    size = rng.uniform(0.85, 1.15)
    density = rng.uniform(0.35, 0.75)
    for side in (-1, 1):
        place = np.array((side * 80, 12, 0)) + rng.normal(0, 3, size=3)
        whole = canvas.ellipsoid(place, np.array((62, 66, 62)) * size)
        canvas.paint(whole, "skin")
        canvas.paint(whole + 2, "fat")
        gland = canvas.ellipsoid(
            place + np.array((0, 14, 0)), np.array((50, 42, 50)) * size * density
        )
        canvas.paint(gland + 9 * density * canvas.waves(rng, 26, 4), "gland", 1)
        if side == 1 or rng.random() < 0.3:
            lesion = canvas.ellipsoid(
                place + rng.uniform(-16, 16, size=3), rng.uniform(5, 12, size=3)
            )
            canvas.paint(lesion + 1.5 * canvas.waves(rng, 12), "lesion", 2)


def _shoulder(canvas: Canvas, rng: np.random.Generator) -> None:
    # x grows towards the arm; phantoms mirrors half of the subjects.
    canvas.paint(canvas.ellipsoid((-40, 0, -30), (110, 70, 105)), "fat")
    canvas.paint(canvas.ellipsoid((-70, 0, -60), (60, 50, 75)), "lung")
    size = rng.uniform(0.9, 1.1)
    deltoid = canvas.ellipsoid((18, 0, -12), (44, 46, 62))
    canvas.paint(deltoid, "muscle")
    canvas.paint(canvas.ellipsoid((-42, -8, 24), (48, 20, 15)), "muscle", 3)
    canvas.paint(canvas.ellipsoid((-42, -12, -22), (46, 12, 26)), "muscle", 3)
    head = canvas.ellipsoid((8, 0, 0), np.array((24, 24, 24)) * size)
    canvas.paint(np.maximum(head - 4.5, -canvas.z + 2), "tendon", 3)
    canvas.paint(head - 2, "cartilage")
    humerus = np.minimum(head, canvas.ellipsoid((16, 0, -56), (12 * size, 12 * size, 58)))
    glenoid = canvas.ellipsoid((-28, -2, -4), np.array((11, 13, 18)) * size)
    blade = canvas.ellipsoid((-60, -10, -2), (38, 5, 34))
    acromion = canvas.ellipsoid((-2, -6, 38), (24, 18, 5))
    scapula: Field = np.minimum(np.minimum(glenoid, blade), acromion)
    bodies: tuple[tuple[Field, int], ...] = ((humerus, 1), (scapula, 2))
    for body, label in bodies:
        canvas.paint(body, "bone", label)
        canvas.paint(body + 1.8, "marrow", label)


PAINTERS: dict[str, Callable[[Canvas, np.random.Generator], None]] = {
    "brain": _brain,
    "heart": _heart,
    "abdomen": _abdomen,
    "prostate": _prostate,
    "knee": _knee,
    "thigh": _thigh,
    "spine": _spine,
    "breast": _breast,
    "shoulder": _shoulder,
}
"""What paints each region on a canvas whose origin is the middle of the region."""
