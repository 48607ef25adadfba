"""Networks for reconstruction: U-Net and VarNet beside fastMRI's own code, and our unrolled net.

    python -m tests.benchmarks.bench_varnet [FASTMRI] [--device cpu|cuda] [--repeats 5]

FASTMRI is a folder that holds the package `fastmri` (PyPI 0.3.0, with runstats 2.0.0 beside it:
`uv pip install --target FASTMRI --no-deps fastmri==0.3.0 runstats==2.0.0`): same weights, same
input, equal output, less time. Without it our figures stand alone. Weights are random, of seed 0
and in the published sizes. The k-space is that of a phantom of 320x320 pixels in 15 simulated
coils, four times undersampled. On a CPU processor seconds, on a GPU wall time: the fastest of the
repeats, which take turns. By default on the CPU, then on a GPU where there is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import core_mri
from core_mri.files.kspace import KSpace, KSpaceHeader, write_kspace
from core_mri.models.unrolled import Unrolled, encode
from core_mri.physics import fft2c, undersampling_mask
from core_mri.physics.phantoms import phantom_volume
from downstream.reconstruction.config import ReconstructConfig
from downstream.reconstruction.stream import keep_freed_memory, reconstruct_file
from tests.core_mri.simulated_scan import coil_profiles

SIZE, COILS = 320, 15
COMMAND_SLICES = 3


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


def share_weights(
    reference: nn.Module | None, name: str, device: str
) -> tuple[nn.Module | None, nn.Module]:
    ours: nn.Module = core_mri.create_model(name)
    if reference is not None:
        ours.load_state_dict(reference.state_dict())
        reference.to(device).eval()
    return reference, ours.to(device).eval()


def timed(calls: list[Callable[[], object]], device: str, repeats: int) -> list[float]:
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
    theirs: Callable[[], Tensor] | None,
    ours: Callable[[], Tensor],
    device: str,
    repeats: int,
) -> None:
    if theirs is None:
        print(f"{title:44s} ours {timed([ours], device, repeats)[0]:8.4f} s", flush=True)
        return
    expected, found = theirs(), ours()
    difference = float((expected - found).abs().max() / expected.abs().max())
    slow, fast = timed([theirs, ours], device, repeats)
    print(
        f"{title:44s} ours {fast:8.4f} s  fastMRI {slow:8.4f} s  {slow / fast:.2f} x  "
        f"difference {difference:.1e}",
        flush=True,
    )


def bench_references(with_reference: bool, device: str, repeats: int) -> None:
    """VarNet and U-Nets."""
    kspace, mask = (x.to(device) for x in simulated())
    pairs, lines = torch.view_as_real(kspace), mask[None, None, None, :, None]
    image = torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(device)
    torch.manual_seed(0)
    makers: dict[str, Callable[[], nn.Module]] = {}
    if with_reference:
        from fastmri.models import Unet, VarNet

        makers = {f"recon_unet_{n}": partial(Unet, 1, 1, n) for n in (32, 64, 128)}
        makers["varnet"] = VarNet
    for name in ("varnet", "recon_unet_32", "recon_unet_64", "recon_unet_128"):
        reference, model = share_weights(makers[name]() if makers else None, name, device)
        ours, theirs = partial(model, image), partial(reference, image) if reference else None
        if name == "varnet":
            ours = partial(model, kspace, mask)
            theirs = partial(reference, pairs, lines) if reference else None
        compare(name, theirs, ours, device, repeats)


def bench_unrolled(device: str, repeats: int) -> None:
    """Ours: parts, one slice, the command, a step of training; with all coils and with fewer."""
    kspace, mask = (x.to(device) for x in simulated())
    models: dict[int, Unrolled] = {}
    for count in (0, 5):
        torch.manual_seed(0)
        found = core_mri.create_model("unrolled", readout_coils=count)
        assert isinstance(found, Unrolled)
        for denoiser in found.denoisers:  # zero would leave the warm start as it is
            nn.init.normal_(denoiser.last.weight, std=0.02)  # type: ignore[arg-type]
        models[count] = found.to(device).eval()
    exact, fewer = models.values()
    encoded = encode(kspace[0], mask)
    size = (SIZE, SIZE)
    calls: dict[str, Callable[[], Tensor]] = {
        "unrolled, a slice": lambda: exact.reconstruct(kspace, mask, size=size),
        "unrolled, a slice, readout_coils 5": lambda: fewer.reconstruct(kspace, mask, size=size),
        "  coil maps and compression": lambda: encode(kspace[0], mask).maps,
        "  warm start": lambda: exact.warm_start(encoded),
        "  network with warm start": lambda: exact(encoded),
    }
    with torch.no_grad():
        images = [exact(encoded).abs(), fewer(encoded).abs()]
        for title, seconds in zip(calls, timed(list(calls.values()), device, repeats), strict=True):
            print(f"{title:44s} ours {seconds:8.4f} s", flush=True)
    error = float((images[0] - images[1]).norm() / images[0].norm())
    print(f"  readout_coils 5 differs by {error:.1e} (root mean square over that of the image)")

    def step() -> None:
        exact(encoded).abs().square().mean().backward()
        exact.zero_grad()

    print(f"{'  forward and backward':44s} ours {timed([step], device, repeats)[0]:8.4f} s")
    bench_command(exact, device)


def bench_command(model: Unrolled, device: str) -> None:
    """`core-mri reconstruct` of a file: what it states for a slice, and all of it."""
    kspace, mask = simulated()
    samples = kspace[0].numpy()
    header = KSpaceHeader(
        encoded_matrix=(SIZE, SIZE, 1), recon_matrix=(SIZE, SIZE, 1),
        encoded_fov_mm=(160.0, 160.0, 3.0), recon_fov_mm=(160.0, 160.0, 3.0),
        phase_center=SIZE // 2, phase_count=SIZE, facts={"Modality": "MR"},
    )  # fmt: skip
    scan = KSpace.from_slices(
        header=header,
        shape=(COMMAND_SLICES, COILS, SIZE, SIZE),
        read_slice=lambda _: samples,
        mask=mask.numpy(),
    )
    with tempfile.TemporaryDirectory() as folder:
        write_kspace(scan, Path(folder, "scan.h5"))
        core_mri.save_model(model, Path(folder, "weights"), {"summary": "Random weights."})
        done = reconstruct_file(
            ReconstructConfig(
                source=str(Path(folder, "weights")),
                kspace=Path(folder, "scan.h5"),
                out=Path(folder, "out.h5"),
                device=device,
            )
        )
    cpu, wall = (", ".join(f"{n:.3f}" for n in times) for times in (done.cpu_s, done.wall_s))
    print(
        f"core-mri reconstruct, {COMMAND_SLICES} slices, {device}: CPU-s {cpu}; wall {wall}; "
        f"{done.total_s:.2f} s in all, with reading and writing",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fastmri", nargs="?", metavar="FASTMRI")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: each that is there")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    options = parser.parse_args()
    if options.fastmri:
        sys.path.insert(0, options.fastmri)
    else:
        print("no FASTMRI folder given: our figures alone, without fastMRI's code beside them")
    there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if not torch.cuda.is_available():
        print("no CUDA device here: figures of the CPU only")
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    for device in [options.device] if options.device else there:
        name = (
            torch.cuda.get_device_name() if device == "cuda" else f"CPU, {options.threads} thread"
        )
        unit = "wall" if device == "cuda" else "processor"
        print(f"\n{name}, torch {torch.__version__}, {unit} seconds, {SIZE}x{SIZE}, {COILS} coils")
        bench_references(bool(options.fastmri), device, options.repeats)
        bench_unrolled(device, options.repeats)
        if device == "cuda":
            print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
