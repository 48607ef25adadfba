"""U-Net and VarNet beside fastMRI's own code: same weights, same input, equal output, less time.

    python -m tests.benchmarks.bench_varnet FASTMRI [--device cuda] [--repeats 5]

FASTMRI is a folder that holds the package `fastmri` (PyPI 0.3.0, with runstats 2.0.0 beside it:
`uv pip install --target FASTMRI --no-deps fastmri==0.3.0 runstats==2.0.0`). Weights are random, of
seed 0 and in the published sizes. The k-space is that of a phantom of 320x320 pixels in 15
simulated coils, four times undersampled. On a CPU one thread and processor seconds, the fastest of
the repeats, which take turns; on a GPU wall time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import core_mri
from core_mri.physics import fft2c, undersampling_mask
from core_mri.physics.phantoms import phantom_volume
from tests.core_mri.simulated_scan import coil_profiles

SIZE, COILS = 320, 15


def simulated() -> tuple[Tensor, Tensor]:
    """K-space ``[1, C, H, W]`` and mask ``[W]``."""
    volume, _ = phantom_volume("knee", 3, "PD", size=SIZE, num_slices=3)
    image = np.ascontiguousarray(volume.array[:, :, 1].T, np.float32)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    phased = torch.from_numpy((image * np.exp(1j * (x + y * y))).astype(np.complex64))
    kspace = fft2c(coil_profiles(COILS, SIZE, SIZE) * phased)[None]
    grain = torch.randn(2, *kspace.shape, generator=torch.Generator().manual_seed(0))
    kspace = kspace + 0.004 * kspace.abs().amax() / SIZE * torch.complex(grain[0], grain[1])
    mask = undersampling_mask(
        "random", (SIZE, SIZE), center_fractions=[0.08], accelerations=[4], seed=7
    ).reshape(-1)
    return kspace * mask, mask


def share_weights(reference: nn.Module, name: str, device: str) -> tuple[nn.Module, nn.Module]:
    ours: nn.Module = core_mri.create_model(name)
    ours.load_state_dict(reference.state_dict())
    return reference.to(device).eval(), ours.to(device).eval()


def timed(calls: list[Callable[[], Tensor]], device: str, repeats: int) -> list[float]:
    """Best seconds of each call, which take turns."""
    clock = time.perf_counter if device != "cpu" else time.process_time
    best = [float("inf")] * len(calls)
    for turn in range(repeats + 1):
        for index, call in enumerate(calls):
            start = clock()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                best[index] = min(best[index], clock() - start)
    return best


@torch.no_grad()
def compare(
    title: str,
    theirs: Callable[[], Tensor],
    ours: Callable[[], Tensor],
    options: argparse.Namespace,
) -> None:
    expected, found = theirs(), ours()
    difference = float((expected - found).abs().max() / expected.abs().max())
    slow, fast = timed([theirs, ours], options.device, options.repeats)
    print(
        f"{title:34s} fastMRI {slow:7.3f} s  ours {fast:7.3f} s  {slow / fast:.2f} x  "
        f"difference {difference:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("fastmri", metavar="FASTMRI")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    sys.path.insert(0, options.fastmri)
    from fastmri.models import Unet, VarNet

    if options.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    kspace, mask = (x.to(options.device) for x in simulated())
    pairs, lines = torch.view_as_real(kspace), mask[None, None, None, :, None]
    reference, model = share_weights(VarNet(), "varnet", options.device)
    compare(
        f"VarNet, {COILS} coils",
        lambda: reference(pairs, lines),
        lambda: model(kspace, mask),
        options,
    )
    image = torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    image = image.to(options.device)
    for channels in (32, 64, 128):
        unet, own = share_weights(Unet(1, 1, channels), f"recon_unet_{channels}", options.device)
        compare(f"U-Net, {channels} channels", partial(unet, image), partial(own, image), options)


if __name__ == "__main__":
    main()
