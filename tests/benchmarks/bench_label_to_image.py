"""Synthetic slices a second and core, beside TorchIO and beside the same steps in NumPy and SciPy.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_label_to_image.py [--slices 40] [--rounds 3]

A whole-head label map of SynthSeg's (CORE_MRI_DATA) or a phantom brain, 256 x 256 px, one slice a
draw. `ours`: `label_to_image` with every artefact as often as by default. `scipy`: rotation,
bending, tissue noise, blur, bias field, truncation of k-space, complex noise and the window with
`scipy.ndimage` and `numpy.fft`, without motion, ghosts and spikes. `torchio`, where it is
installed: RandomAffine, RandomElasticDeformation, RandomLabelsToImage, RandomBlur, RandomBiasField,
RandomMotion, RandomGhosting, RandomSpike and RandomNoise, each artefact as often as here. The
median of interleaved rounds, CPU-seconds of one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from core_mri import read_volume
from core_mri.physics.label_to_image import label_to_image
from core_mri.physics.phantoms import phantom_volume

SIDE = 256
Labels = npt.NDArray[np.int64]


def head() -> Labels:
    """[256, 256] in the middle of a head."""
    folder = os.environ.get("CORE_MRI_DATA")
    if folder:
        array = read_volume(Path(folder, "labelmaps_synthseg/training_seg_08.nii.gz")).array
    else:
        array = phantom_volume("brain", 0, "T1", size=224, num_slices=9, seed=0)[1].array
    middle = np.asarray(array)[..., array.shape[2] // 2].astype(np.int64)[:SIDE, :SIDE]
    padded = np.zeros((SIDE, SIDE), np.int64)
    rows, columns = ((SIDE - n) // 2 for n in middle.shape)
    padded[rows : rows + middle.shape[0], columns : columns + middle.shape[1]] = middle
    return padded


def by_scipy(labels: Labels, seed: int) -> npt.NDArray[np.float32]:
    """The same steps, plainly."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    i, j = np.meshgrid(*(np.arange(SIDE),) * 2, indexing="ij")
    angle = np.deg2rad(rng.uniform(-12, 12))
    bend = [ndimage.zoom(rng.normal(0, 0.012 * SIDE, (6, 6)), SIDE / 6, order=3) for _ in range(2)]
    y, x = i - SIDE / 2, j - SIDE / 2
    points = [
        np.cos(angle) * y - np.sin(angle) * x + SIDE / 2 + bend[0],
        np.sin(angle) * y + np.cos(angle) * x + SIDE / 2 + bend[1],
    ]
    moved = ndimage.map_coordinates(labels, points, order=0)
    values, index = np.unique(moved, return_inverse=True)
    index = index.reshape(moved.shape)
    mean, spread = rng.uniform(0.05, 1, len(values)), rng.uniform(0, 0.08, len(values))
    image = mean[index] + spread[index] * rng.standard_normal(moved.shape)
    image = ndimage.gaussian_filter(image, rng.uniform(0.3, 1.1))
    image = np.clip(image, 0, 1) ** np.exp(rng.uniform(-0.3, 0.3))
    u, v = y / (SIDE / 2), x / (SIDE / 2)
    powers = [(a, b) for a in range(4) for b in range(4) if 0 < a + b <= 3]
    field = sum(rng.uniform(-0.3, 0.3) * u**a * v**b for a, b in powers)
    kspace = np.fft.fft2(image * np.exp(field), norm="ortho")
    f = np.abs(np.fft.fftfreq(SIDE)) / rng.uniform(0.35, 1)
    window = (0.54 + 0.46 * np.cos(2 * np.pi * f)) * (f <= 0.5)
    noise = rng.standard_normal((2, SIDE, SIDE)) * rng.uniform(0, 0.08)
    image = np.abs(np.fft.ifft2(np.outer(window, window) * (kspace + noise[0] + 1j * noise[1])))
    low, high = np.quantile(image, [0.005, 0.995])
    return np.clip((image - low) / (high - low), 0, 1).astype(np.float32)


def torchio_maker(labels: Labels) -> Callable[[int], object]:
    """One slice a call with TorchIO's transforms."""
    import torchio as tio

    subject = tio.Subject(label=tio.LabelMap(tensor=torch.from_numpy(labels)[None, :, :, None]))
    steps = tio.Compose(
        [
            tio.RandomAffine(scales=0.12, degrees=(0, 0, 12), isotropic=True),
            tio.RandomElasticDeformation(
                num_control_points=(6, 6, 4), max_displacement=(6, 6, 0), locked_borders=0
            ),
            tio.RandomLabelsToImage(label_key="label", default_std=(0.0, 0.08)),
            tio.RandomBlur(std=(0.3, 1.1, 0.3, 1.1, 0, 0)),
            tio.RandomBiasField(),
            tio.RandomMotion(degrees=3, translation=4, num_transforms=2, p=0.2),
            tio.RandomGhosting(axes=(0,), p=0.2),
            tio.RandomSpike(p=0.2),
            tio.RandomNoise(std=(0, 0.08)),
        ]
    )

    def make(seed: int) -> object:
        torch.manual_seed(seed)
        return steps(subject)

    return make


def main() -> None:
    """Print slices a second of each, and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    labels = head()
    stacked = torch.from_numpy(labels)[None]
    makers: dict[str, Callable[[int], object]] = {
        "ours": lambda seed: label_to_image(stacked, seed),
        "scipy": lambda seed: by_scipy(labels, seed),
    }
    if importlib.util.find_spec("torchio"):
        makers["torchio"] = torchio_maker(labels)
    spent: dict[str, list[float]] = {name: [] for name in makers}
    for make in makers.values():
        make(0)
    for turn in range(options.rounds):
        for name, make in makers.items():
            started = time.process_time()
            for number in range(options.slices):
                make(turn * options.slices + number)
            spent[name].append(options.slices / (time.process_time() - started))
    rates = {name: statistics.median(own) for name, own in spent.items()}
    for name, rate in rates.items():
        print(f"{name:8} {rate:7.1f} slices/s and core   ours is {rates['ours'] / rate:5.2f} x")


if __name__ == "__main__":
    main()
