"""What a 5-slice fine-tune costs: frozen features computed once, beside computing them every step.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_finetune.py [--steps 150] [--decoder light ...]

Synthetic abdomens, 5 labelled slices and 5 for validation, 224 px, a ViT-S-size encoder with random
weights (cost does not depend on them), float32, one thread. Numbers are seconds of processor time
for everything from the labelled slices to the fitted model. `head` is the reference: the same
decoder and batches, the encoder just as still, but slices augmented and encoded afresh at every
step. Times of all but `frozen` are those of a few steps, scaled up, without validation. The last
line compares the augmentation of a batch with MONAI's transforms of the same kind (affine move,
gamma, contrast), slice by slice as MONAI offers them.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import Tensor

import core_mri
from core_mri.models.encoder import Encoder
from core_mri.physics.phantoms import LABELS, phantom_volume
from core_mri.slice_grid import image_to_square, mask_to_square
from downstream.config import Adaptation
from downstream.recipe import DecoderName, Recipe
from downstream.segmentation.augment import augment
from downstream.segmentation.examples import LabelledSlices
from downstream.segmentation.train import Trainer

SIZE = 224
GOAL_SECONDS = 180
BATCH = 5
FEW = 5
"""Steps that are timed where all of them would take minutes."""
ADAPTATIONS: tuple[Adaptation, ...] = ("frozen", "head", "adapters", "lora", "full")


def examples(first: int, count: int) -> list[LabelledSlices]:
    """One middle slice each of `count` subjects."""
    found = []
    for subject in range(first, first + count):
        image, label = phantom_volume("abdomen", subject, size=SIZE, num_slices=3, seed=0)
        middle = np.moveaxis(image.array, 2, 0)[1:2].astype(np.float32)
        mask = np.moveaxis(label.array, 2, 0)[1:2].astype(np.uint8)
        scaled = (middle - middle.min()) / np.ptp(middle)
        found.append(LabelledSlices(image_to_square(scaled, SIZE), mask_to_square(mask, SIZE)))
    return found


def seconds(encoder: Encoder, adaptation: Adaptation, decoder: DecoderName, steps: int) -> float:
    """Processor time of a fine-tune."""
    recipe = Recipe(
        image_size=SIZE,
        batch_size=BATCH,
        decoder=decoder,
        learning_rate=1e-3 if decoder == "sam" else 5e-3,
        validate_every=10 * steps if adaptation != "frozen" else 30,
    )
    training, validation = examples(0, 5), examples(5, 5)
    labels = LABELS["abdomen"]
    started = time.process_time()
    trainer = Trainer(
        encoder,
        training,
        validation,
        labels=labels,
        adaptation=adaptation,
        recipe=recipe,
        steps=steps,
        seed=0,
        name="abdomen",
    )
    ready = time.process_time()
    timed = steps if adaptation == "frozen" else min(FEW, steps)
    for index in range(timed):
        trainer.step(index)
    stepped = time.process_time()
    if adaptation == "frozen":
        trainer.finish()
        return time.process_time() - started
    return ready - started + (stepped - ready) * steps / timed


def monai_augment(images: Tensor, masks: Tensor) -> None:
    """MONAI's transforms nearest to `augment`, which take one slice at a time."""
    from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandScaleIntensityd

    transforms = Compose(
        [
            RandAffined(
                ["image", "mask"],
                prob=1,
                rotate_range=0.26,
                scale_range=0.1,
                translate_range=0.06 * SIZE,
                mode=["bilinear", "nearest"],
                padding_mode="zeros",
            ),
            RandAdjustContrastd(["image"], prob=1, gamma=(0.67, 1.5)),
            RandScaleIntensityd(["image"], prob=1, factors=0.25),
        ]
    )
    for image, mask in zip(images, masks[:, None], strict=True):
        transforms({"image": image, "mask": mask})


def augmentation() -> tuple[float, float]:
    """Milliseconds a slice, ours and MONAI's."""
    images, masks = torch.rand(8, 1, SIZE, SIZE), torch.zeros(8, SIZE, SIZE, dtype=torch.int64)
    found = []
    for run in (lambda i: augment(images, masks, i), lambda _: monai_augment(images, masks)):
        run(0)
        started = time.process_time()
        for index in range(10):
            run(index)
        found.append((time.process_time() - started) / 80 * 1000)
    return found[0], found[1]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--decoder", nargs="*", default=["linear", "light", "pyramid", "sam"])
    parser.add_argument("--adaptation", nargs="*", default=ADAPTATIONS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = core_mri.create_model("vit_small_patch16").eval()
    print(f"{options.steps} steps, 5 slices of {SIZE} px, vit_small_patch16; CPU-seconds")
    for decoder in options.decoder:
        taken = {a: seconds(encoder, a, decoder, options.steps) for a in options.adaptation}
        row = "  ".join(f"{name} {value:7.1f}" for name, value in taken.items())
        verdict = ""
        if "frozen" in taken:
            verdict = "met" if taken["frozen"] < GOAL_SECONDS else "missed"
            verdict = f"  goal {GOAL_SECONDS} s {verdict}"
            if "head" in taken:
                verdict += f", {taken['head'] / taken['frozen']:.1f} times as fast as head"
        print(f"{decoder:8s} {row}{verdict}", flush=True)
    ours, theirs = augmentation()
    print(f"augmentation, ms a slice: ours {ours:.2f}, MONAI {theirs:.2f} ({theirs / ours:.1f} x)")


if __name__ == "__main__":
    main()
