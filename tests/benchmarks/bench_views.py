"""Views of slices against torchvision's v2 functionals, on the CPU.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_views.py [--slices 32] [--rounds 5]

Both make 2 x 224 + 8 x 96 px from the same 320 x 320 px int16 slices with the same boxes and the
same draws. `crops`: crop and resize alone. `shared`: also gamma, blur, brightness and contrast,
which torchvision has, for the same views at the default probabilities. `all`: every default
augmentation, which torchvision has not, so its row stays with `shared`. Medians of interleaved
rounds, one thread.

torchvision's blur takes a fixed kernel of 9 px as DINOv2's; ours is not cut off.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torchvision.transforms.v2 import functional as v2

from data_registry.slices import StoredSlice
from pretrain.augmentations import AUGMENTATIONS, NUM_DRAWS
from pretrain.config import ViewsConfig
from pretrain.crops import BOX_DRAWS, between, draw_boxes, log_between
from pretrain.sampler import VIEWS, random_stream
from pretrain.upload import num_bytes
from pretrain.views import make_views

CPU = torch.device("cpu")
SIDE = 320
SHARED = ("gamma", "blur", "window")
DEFAULT = ViewsConfig()
NEVER = {augmentation.probability: 0.0 for augmentation in AUGMENTATIONS.values()}
CROPS = replace(DEFAULT, **NEVER)
KEPT = {AUGMENTATIONS[name].probability: None for name in SHARED}
ONLY_SHARED = replace(DEFAULT, **{name: 0.0 for name in NEVER if name not in KEPT})


def torchvision_views(
    slices: list[StoredSlice], samples: np.ndarray, config: ViewsConfig
) -> list[list[torch.Tensor]]:
    """The same work, view by view."""
    found = []
    offsets, first = {}, BOX_DRAWS + 2
    for name, augmentation in AUGMENTATIONS.items():
        offsets[name], first = first, first + 1 + augmentation.num_draws
    for item, sample in zip(slices, samples, strict=True):
        num_views = config.num_global + config.num_local
        draws = random_stream(0, int(sample), VIEWS).random((num_views, BOX_DRAWS + 2 + NUM_DRAWS))
        image = torch.from_numpy(item.payload)[None].float()
        image = ((image - item.shift) * item.gain).clamp_(0, 1)
        views = []
        for view, uniform in enumerate(draws):
            large = view < config.num_global
            scale = config.global_scale if large else config.local_scale
            size = config.global_size if large else config.local_size
            box = draw_boxes(
                np.array([[SIDE, SIDE]]), uniform[None, None, :BOX_DRAWS], scale, config.aspect
            )[0, 0]
            changed = v2.resized_crop(image, *box.tolist(), [size, size], antialias=True)
            chance, amount = (
                {name: uniform[start + add] for name, start in offsets.items()} for add in (0, 1)
            )
            if chance["gamma"] < config.gamma_probability:
                changed = v2.adjust_gamma(
                    changed, float(log_between(config.gamma, amount["gamma"]))
                )
            if chance["blur"] < config.blur_probability:
                sigma = float(log_between(config.blur_sigma_px, amount["blur"]))
                changed = v2.gaussian_blur(changed, [9, 9], [sigma, sigma])
            if chance["window"] < config.contrast_probability:
                bright, contrast = (
                    float(between((1 - largest, 1 + largest), uniform[offsets["window"] + add]))
                    for add, largest in ((1, config.brightness), (2, config.contrast))
                )
                changed = v2.adjust_contrast(v2.adjust_brightness(changed, bright), contrast)
            views.append(changed)
        found.append(views)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    slices = [
        StoredSlice(
            random.integers(0, 1000, (SIDE, SIDE)).astype(np.int16), 0.0, 1e-3, "v", i, "", ""
        )
        for i in range(options.slices)
    ]
    samples = np.arange(options.slices)

    def ours(config: ViewsConfig) -> Callable[[], object]:
        return lambda: make_views(slices, samples, config, seed=0, device=CPU)

    def theirs(config: ViewsConfig) -> Callable[[], object]:
        return lambda: torchvision_views(slices, samples, config)

    small = replace(ONLY_SHARED, blur_probability=0.0)  # equal also where kernels are cut off
    got = make_views(slices[:4], samples[:4], small, seed=0, device=CPU)
    for row, expected in enumerate(torchvision_views(slices[:4], samples[:4], small)):
        for view, want in enumerate(expected):
            have = got.global_views[row, view] if view < 2 else got.local_views[row, view - 2]
            torch.testing.assert_close(have, want, atol=1e-5, rtol=0)
    print("the same views as torchvision's within 1e-5 (without blur, whose kernel it cuts off)")
    cases = {
        "crops, ours": ours(CROPS),
        "crops, torchvision": theirs(CROPS),
        "shared, ours": ours(ONLY_SHARED),
        "shared, torchvision": theirs(ONLY_SHARED),
        "all, ours": ours(DEFAULT),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(options.rounds + 1):
        for name, case in cases.items():
            started = time.process_time()
            case()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - started)
    speed = {name: options.slices / float(np.median(values)) for name, values in seconds.items()}
    for name, value in speed.items():
        print(f"{name:<22}{value:8.0f} slices/s per core")
    for kind in ("crops", "shared"):
        ratio = speed[f"{kind}, ours"] / speed[f"{kind}, torchvision"]
        print(f"{kind}: {ratio:.2f} x torchvision")
    print(f"all / shared of torchvision: {speed['all, ours'] / speed['shared, torchvision']:.2f}")
    views = 2 * DEFAULT.global_size**2 + DEFAULT.num_local * DEFAULT.local_size**2
    for name, own in (
        ("stored int16", num_bytes(slices) / len(slices)),
        ("stored uint8", SIDE * SIDE),
        ("slice as float32", 4 * SIDE * SIDE),
        ("views as float32", 4 * views),
        ("views as float32 RGB", 12 * views),
    ):
        print(f"host to device, {name:<22}{own / 1e3:8.0f} kB/slice")


if __name__ == "__main__":
    main()
