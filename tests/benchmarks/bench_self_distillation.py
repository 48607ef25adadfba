"""Self-distillation as a loss for reconstruction: why it collapses, and what tells.

    python tests/benchmarks/bench_self_distillation.py [--steps 500] [--seed 0] [--json FILE]

A student sees the zero-filled image of one half of the measured lines, a teacher (the moving
average of the student) that of another half, both with the center; the student learns to say what
the teacher says, L1 on normalized images. Nothing asks that either looks at its input. Beside it
the same U-Net with a hard step to the measured samples, and our unrolled network trained on
held-out samples. Data: SIMULATED k-space (4 coils, 3x, noise 0.4 %) of synthetic bodies of
`core_mri.physics.phantoms`, 64 x 64; test bodies are other ones.

Printed for each look:
    loss         what is minimized
    NMSE         against the truth, over the test slices
    dependence   standard deviation over the test slices, per pixel, of the outputs over that of the
                 inputs, both by mean and deviation of the input: 0 for a network that says the same
                 whatever it sees
    residual     ||A x - y|| / ||y|| of the measured samples (`magnitude_residual`)
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from core_mri.models import create_model
from core_mri.models.unrolled import Unrolled, encode, stacked
from core_mri.physics import (
    birdcage_maps,
    magnitude_residual,
    resampled,
    root_sum_of_squares,
    simulate_kspace,
    smooth_phase,
    undersampling_mask,
)
from core_mri.physics.fourier import fft2c, ifft2c
from core_mri.physics.phantoms import phantom_volume
from core_mri.training.ema import update_ema
from downstream.reconstruction.training.losses.holdout import holdout_loss, split

SIZE, COILS, RATE, CENTER, NOISE = 64, 4, 3, 0.2, 0.004
BATCH, MOMENTUM, RATE_OF_LEARNING = 4, 0.99, 1e-3


class Scan:
    """One simulated slice."""

    def __init__(self, number: int, region: str) -> None:
        rng = np.random.default_rng(number)
        volume, _ = phantom_volume(region, number, "T2", size=SIZE, num_slices=3, seed=0)
        image = torch.from_numpy(np.asarray(volume.array[:, :, 1].T, np.float32).copy())
        self.image = resampled(image / image.max(), SIZE)
        shape = (SIZE, SIZE)
        maps, phase = birdcage_maps(COILS, shape, rng), smooth_phase(shape, rng)
        self.mask = undersampling_mask(
            "random", shape, center_fractions=[CENTER], accelerations=[RATE], seed=number
        ).reshape(-1)
        self.kspace = simulate_kspace(self.image, maps, phase, NOISE, rng) * self.mask


def halves(mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Two halves of the lines, each with the center."""
    center = torch.zeros_like(mask)
    low = round(SIZE * CENTER)
    start = (SIZE - low + 1) // 2
    center[start : start + low] = True
    first = torch.from_numpy(rng.random(SIZE) < 0.5)
    return mask & (first | center), mask & (~first | center)


def zero_filled(kspace: Tensor, mask: Tensor) -> Tensor:
    return root_sum_of_squares(ifft2c(kspace * mask), -3)


def normalized(images: Tensor) -> Tensor:
    mean, std = images.mean((-2, -1), keepdim=True), images.std((-2, -1), keepdim=True)
    return (images - mean) / (std + 1e-11)


def projected(image: Tensor, scan: Scan, mask: Tensor) -> Tensor:
    """The magnitude with the measured samples put back into each coil: hard data consistency."""
    coils = ifft2c(scan.kspace * mask)
    combined = root_sum_of_squares(coils, -3).clamp_min(1e-6)
    samples = fft2c(image * coils / combined)  # coil phases and shares of the zero-filled image
    return root_sum_of_squares(ifft2c(torch.where(mask, scan.kspace, samples)), -3)


def distilled(train: list[Scan], test: list[Scan], steps: int, seed: int, hard: bool) -> list[dict]:
    """The seed's variant; with `hard`, outputs are made consistent with the samples first."""
    torch.manual_seed(seed)
    student: nn.Module = create_model("recon_unet_micro")
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.RMSprop(student.parameters(), lr=RATE_OF_LEARNING)  # the seed's

    def output(net: nn.Module, scan: Scan, mask: Tensor) -> Tensor:
        seen = zero_filled(scan.kspace, mask)
        said = net(normalized(seen)[None, None])[0, 0]
        image = said * seen.std() + seen.mean()
        return projected(image, scan, mask) if hard else image

    rows = []
    for step in range(steps + 1):
        rng = np.random.default_rng((seed, step))
        losses = []
        for number in rng.integers(len(train), size=BATCH):
            scan = train[number]
            one, other = halves(scan.mask, rng)
            scale = zero_filled(scan.kspace, scan.mask).std()
            with torch.no_grad():
                wanted = output(teacher, scan, other)
            losses.append(functional.l1_loss(output(student, scan, one), wanted) / scale)
        loss = torch.stack(losses).mean()
        if step % max(steps // 6, 1) == 0:
            with torch.no_grad():
                images = torch.stack([output(student, scan, scan.mask) for scan in test])
            rows.append({"step": step, "loss": float(loss.detach()), **judged(images, test)})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_ema(teacher, student, MOMENTUM)
    return rows


def anchored(train: list[Scan], test: list[Scan], steps: int, seed: int) -> list[dict]:
    """Our unrolled network on held-out samples."""
    torch.manual_seed(seed)
    net = create_model("unrolled_micro", start="cg-sense")
    assert isinstance(net, Unrolled)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE_OF_LEARNING)
    encodings = [encode(scan.kspace, scan.mask) for scan in train]
    rows = []
    for step in range(steps + 1):
        rng = np.random.default_rng((seed, step))
        batch = stacked([encodings[number] for number in rng.integers(len(train), size=BATCH)])
        parts = [split(mask, SIZE, share=0.4, selection="gaussian", rng=rng) for mask in batch.mask]
        theta, held = (torch.stack(part) for part in zip(*parts, strict=True))
        loss = holdout_loss(batch, net(batch.of(theta)), held).mean()
        if step % max(steps // 6, 1) == 0:
            images = [net.reconstruct(s.kspace[None], s.mask, size=(SIZE, SIZE))[0] for s in test]
            rows.append({"step": step, "loss": float(loss.detach()),
                         **judged(torch.stack(images), test)})  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return rows


def judged(images: Tensor, test: list[Scan]) -> dict[str, float]:
    """NMSE, dependence and residual of the test slices ``[n, SIZE, SIZE]``."""
    truth = torch.stack([scan.image for scan in test])
    inputs = torch.stack([zero_filled(scan.kspace, scan.mask) for scan in test])
    mean, std = inputs.mean((-2, -1), keepdim=True), inputs.std((-2, -1), keepdim=True)
    given = (inputs - mean) / std
    residuals = [
        magnitude_residual(scan.kspace, scan.mask, image.clamp_min(0))
        for image, scan in zip(images, test, strict=True)
    ]
    return {
        "NMSE": float((images - truth).square().sum() / truth.square().sum()),
        "dependence": float(((images - mean) / std).std(0).mean() / given.std(0).mean()),
        "residual": float(torch.stack(residuals).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train = [Scan(number, region) for number in range(12) for region in ("brain", "knee")]
    test = [Scan(100 + number, region) for number in range(6) for region in ("brain", "knee")]
    start = torch.stack([zero_filled(scan.kspace, scan.mask) for scan in test])
    print("SIMULATED k-space of synthetic bodies")
    print(f"zero-filled: {judged(start, test)}")
    common = (options.steps, options.seed)
    found = {}
    for name, run in {
        "student and teacher, L1": lambda: distilled(train, test, *common, hard=False),
        "the same, hard data consistency": lambda: distilled(train, test, *common, hard=True),
        "held-out samples, unrolled": lambda: anchored(train, test, *common),
    }.items():
        began = time.process_time()
        found[name] = run()
        print(f"\n{name} ({time.process_time() - began:.0f} CPU-s)")
        for row in found[name]:
            print("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
