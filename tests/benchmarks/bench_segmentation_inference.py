"""A whole volume through a segmenter, beside MONAI's sliding window with the same network.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_segmentation_inference.py [--slices 24]

The reference is `monai.inferers.sliding_window_inference` over the stack of images, windows of the
encoder's side, overlap 0.25, Gaussian weights. Where the decoder looks at neighbours its predictor
gets the same planes, so it encodes every plane of every slice. Seconds of processor time, float32,
one thread, random weights; the masks of both must agree.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import Tensor

import core_mri
from core_mri.models.heads import DECODERS
from core_mri.models.segmenter import Inference, Segmenter, spread_depths
from core_mri.slice_inference import neighbour_windows, segment_slices

SIZE, BATCH = 224, 8


def segmenter(neighbours: int) -> Segmenter:
    """ViT-S with the light decoder."""
    torch.manual_seed(0)
    encoder = core_mri.create_model("vit_small_patch16")
    head = DECODERS["light"](384, 3, 4, patch_size=16, planes=2 * neighbours + 1)
    return Segmenter(
        encoder,
        head,
        depths=spread_depths(12, 4),
        labels={1: "a", 2: "b"},
        image_size=SIZE,
        neighbours=neighbours,
        inference=Inference(pixel_mm=1.0),
    ).eval()


@torch.inference_mode()
def reference(model: Segmenter, slices: np.ndarray) -> np.ndarray:
    """The same masks by MONAI."""
    from monai.inferers import sliding_window_inference

    index = neighbour_windows(range(len(slices)), model.neighbours, len(slices))
    planes = torch.from_numpy(slices)[index]
    logits = sliding_window_inference(
        planes, (SIZE, SIZE), BATCH, model, overlap=0.25, mode="gaussian"
    )
    assert isinstance(logits, Tensor)
    return logits.argmax(1).to(torch.uint8).numpy()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.slices} slices, vit_small_patch16, light decoder; CPU-seconds")
    for side, neighbours in ((224, 0), (224, 1), (320, 0), (320, 1)):
        model = segmenter(neighbours)
        slices = np.random.default_rng(0).random((options.slices, side, side), dtype=np.float32)
        started = time.process_time()
        theirs = reference(model, slices)
        middle = time.process_time()
        ours = segment_slices(model, slices, (5.0, 1.0, 1.0), batch_size=BATCH)
        stopped = time.process_time()
        mine, monai = stopped - middle, middle - started
        print(
            f"{side} px, {2 * neighbours + 1} slices seen: ours {mine:6.1f}, MONAI {monai:6.1f}, "
            f"ratio {monai / mine:.2f}, masks agree on {(ours == theirs).mean():.5f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
