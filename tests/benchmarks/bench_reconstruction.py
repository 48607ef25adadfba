"""Quality and time of `core_mri.physics.reconstruct` beside BART and sigpy, on simulated k-space.

    python tests/benchmarks/bench_reconstruction.py [--oracle] [--rows 4] [--json FILE]

Every image (BART's Shepp-Logan phantom, synthetic bodies, and real magnitude images of
CORE_MRI_DATA) is multiplied with a smooth phase and 12 birdcage coils, transformed, given complex
noise of 0.4 % of its peak, and undersampled by fastMRI's random masks (4x with 8 % of center lines,
8x with 4 %). All numbers are therefore of SIMULATED k-space, scored against the noise-free root sum
of squares. Real images of another size are interpolated to 300 pixels first.

Ours runs with its one fixed setting: no argument is given but the method. The weights of the others
are chosen on the tuning images, separately for 4x and 8x and for PSNR and SSIM; each rival is
scored at both choices and the better of the two counts, number by number. ``--oracle`` also gives
BART the best weight of the grid for the very image that is scored. BART: ``ecalib -m1`` with its
defaults; ``pics -S -R T:3:0:w -i 200`` (the setting of fastMRI's published baseline) and ``pics -S
-R W:3:0:w -i 100``. Each call is a process of its own, one thread, files in memory (/dev/shm); FFT
plans are made anew in each, which is how BART 0.8 works. sigpy: EspiritCalib, TotalVariationRecon
(300 iterations), L1WaveletRecon (100), in this process. Times are processor seconds, maps
included; memory is the peak of the process beyond what it took after import.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.ndimage import zoom

import core_mri
from core_mri.metrics import psnr, ssim
from core_mri.physics import fft2c, ifft2c, reconstruct, root_sum_of_squares, undersampling_mask
from core_mri.physics.phantoms import phantom_volume
from core_mri.volume import SLICE_ORIENTATION
from downstream.reconstruction.backends import read_cfl, write_cfl
from downstream.reconstruction.stream import keep_freed_memory

SIZE, NUM_COILS, NOISE = 320, 12, 0.004
RATES = ((4, 0.08), (8, 0.04))
REAL = {
    "ICBM152 T1": ("brain_icbm152/t1.nii.gz", 95),
    "prostate T2": ("prostate_prostatex0000/t2_tra", 9),
    "knee PD": ("knee_mese/echo1*", 12),
    "head PD": ("dicom/ge_head_pd_series", 9),
    "brain T1 post": ("brain_tcia_btp003/t1post_dicom", 11),
    "tumor T1": ("brain_tumor_pyradiomics/brain1_image.nrrd", 12),
    "MS T2": ("brain_ms_lesion/patient19/t2.nii.gz", 80),
    "kidney T2": ("abdomen_kidney/test_sub_01.nii.gz", 6),
}
SCORED = ["Shepp-Logan", "phantom brain T2", *list(REAL)[:5]]
TUNING = ["phantom knee T1", "phantom abdomen T2", *list(REAL)[5:]]
WEIGHTS = {
    "BART TV": (0.0015, 0.003, 0.006, 0.012, 0.024),
    "BART wavelet": (0.0003, 0.001, 0.003, 0.009),
    "sigpy TV": (0.001, 0.003, 0.01),
    "sigpy wavelet": (0.001, 0.003, 0.01),
}
SIGPY_TUNING = 2
"""sigpy is slow: its weights are chosen on the first images only."""


def load(name: str) -> np.ndarray:
    """Magnitudes ``[320, 320]``, 99.9th percentile 1."""
    if name == "Shepp-Logan":
        image = np.abs(bart(["phantom", f"-x{SIZE}"], [])[0]).reshape(SIZE, SIZE)
    elif name.startswith("phantom"):
        _, region, sequence = name.split()
        volume, _ = phantom_volume(region, 3, sequence, size=SIZE, num_slices=3)
        image = volume.array[:, :, 1].T
    else:
        where, index = REAL[name]
        root = Path(os.environ["CORE_MRI_DATA"])
        volume = core_mri.read_volume(sorted(root.glob(where)) if "*" in where else root / where)
        image = np.asarray(volume.reorient(SLICE_ORIENTATION[volume.plane]).array)[index]
    image = image.astype(np.float32)
    scale = 300 / max(image.shape)
    if not 0.8 < scale < 1.08:
        image = zoom(image, scale, order=3 if scale > 1 else 1)
    canvas = np.zeros((SIZE, SIZE), np.float32)
    cut = image[
        tuple(slice(max(n - SIZE, 0) // 2, max(n - SIZE, 0) // 2 + SIZE) for n in image.shape)
    ]
    top, left = ((SIZE - n) // 2 for n in cut.shape)
    canvas[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return np.clip(canvas / np.quantile(canvas, 0.999), 0, 1.2)


def simulate(image: np.ndarray, rate: int, center: float, seed: int) -> tuple[Any, Any, Any]:
    """K-space ``[C, H, W]``, mask ``[W]``, reference ``[1, H, W]``."""
    from sigpy import mri

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    a = rng.normal(size=5)
    phase = np.exp(1j * (a[0] * x + a[1] * y + a[2] * x * y + a[3] * x**2 + a[4] * y**2))
    coils = torch.from_numpy(mri.birdcage_maps((NUM_COILS, SIZE, SIZE)).astype(np.complex64))
    images = coils * torch.from_numpy((image * phase).astype(np.complex64))
    reference = root_sum_of_squares(images, 0).numpy()[None]
    grain = (rng.normal(size=(2, *coils.shape)) * NOISE * reference.max() / 2**0.5).astype(
        np.float32
    )
    kspace = fft2c(images) + torch.complex(*torch.from_numpy(grain))
    mask = undersampling_mask(
        "random", (SIZE, SIZE), center_fractions=[center], accelerations=[rate], seed=seed
    ).reshape(-1)
    return kspace * mask, mask, reference


def bart(words: list[str], arrays: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Run a tool of BART; its array and processor seconds."""
    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        names = [f"in{i}" for i in range(len(arrays))]
        for name, array in zip(names, arrays, strict=True):
            write_cfl(Path(folder, name), array)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            ["bart", *words, *names, "out"], cwd=folder, check=True, stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return read_cfl(Path(folder, "out")), seconds


class Problem:
    """One simulated slice; maps of the rivals are made once."""

    def __init__(self, name: str, rate: int, center: float, seed: int) -> None:
        self.kspace, self.mask, self.reference = simulate(load(name), rate, center, seed)
        self._maps: dict[str, tuple[np.ndarray, float]] = {}

    def score(self, image: np.ndarray) -> tuple[float, float]:
        estimate = np.abs(np.asarray(image)).reshape(self.reference.shape)
        return psnr(self.reference, estimate), ssim(self.reference, estimate)

    def ours(self, method: str) -> tuple[float, float, float]:
        start = time.process_time()
        with torch.inference_mode():
            image = reconstruct(self.kspace, self.mask, method).image
        return *self.score(image), time.process_time() - start

    def rival(self, name: str, weight: float) -> tuple[float, float, float]:
        program, method = name.split()
        image, seconds = getattr(self, program.lower())(method, weight)
        return *self.score(image), seconds

    def bart(self, method: str, weight: float) -> tuple[np.ndarray, float]:
        data = self.kspace.permute(1, 2, 0).numpy()[:, :, None]
        if "bart" not in self._maps:
            self._maps["bart"] = bart(["ecalib", "-m1"], [data])
        maps, seconds = self._maps["bart"]
        penalty = f"T:3:0:{weight}" if method == "TV" else f"W:3:0:{weight}"
        iterations = "200" if method == "TV" else "100"
        image, more = bart(["pics", "-S", "-R", penalty, "-i", iterations], [data, maps])
        return image, seconds + more

    def sigpy(self, method: str, weight: float) -> tuple[np.ndarray, float]:
        from sigpy.mri import app

        start = time.process_time()
        samples = self.kspace.numpy()
        if "sigpy" not in self._maps:
            maps = app.EspiritCalib(samples, show_pbar=False).run()
            self._maps["sigpy"] = maps, time.process_time() - start
            start = time.process_time()
        maps, seconds = self._maps["sigpy"]
        scale = np.abs((maps.conj() * ifft2c(self.kspace).numpy()).sum(0)).max()
        solver, count = (
            (app.TotalVariationRecon, 300) if method == "TV" else (app.L1WaveletRecon, 100)
        )
        image = solver(samples / scale, maps, weight, max_iter=count, show_pbar=False).run()
        return image * scale, seconds + time.process_time() - start


def tuned(names: list[str]) -> dict[tuple[str, int], tuple[float, float]]:
    """For each rival and rate, the weights of best mean PSNR and of best mean SSIM."""
    table: dict[tuple[str, int], dict[float, list[tuple[float, float]]]] = {}
    for number, image in enumerate(names):
        for rate, center in RATES:
            problem = Problem(image, rate, center, seed=11)
            for rival, weights in WEIGHTS.items():
                if rival.startswith("sigpy") and number >= SIGPY_TUNING:
                    continue
                cell = table.setdefault((rival, rate), defaultdict(list))
                for weight in weights:
                    cell[weight].append(problem.rival(rival, weight)[:2])
    chosen = {}
    for key, cell in table.items():
        means = {weight: np.mean(scores, 0) for weight, scores in cell.items()}
        chosen[key] = tuple(max(means, key=lambda w, k=k: means[w][k]) for k in (0, 1))
        print(f"tuned {key[0]} {key[1]}x: PSNR {chosen[key][0]}, SSIM {chosen[key][1]}", flush=True)
    return chosen


def best(runs: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    return max(r[0] for r in runs), max(r[1] for r in runs), float(np.mean([r[2] for r in runs]))


def compare(names: list[str], chosen: dict[Any, Any], oracle: bool) -> list[dict[str, Any]]:
    """Print a row for each method, image and rate."""
    rows = []
    for image in names:
        for rate, center in RATES:
            problem = Problem(image, rate, center, seed=7)
            zero = reconstruct(problem.kspace, problem.mask, "zero-filled").image
            found: dict[str, tuple[float, float, float]] = {
                "zero-filled": (*problem.score(zero), 0.0),
                "ours wavelet": problem.ours("wavelet"),
                "ours TV": problem.ours("tv"),
                "ours CG-SENSE": problem.ours("cg-sense"),
            }
            for rival, weights in WEIGHTS.items():
                pair = sorted(set(chosen[rival, rate]))
                found[rival] = best([problem.rival(rival, w) for w in pair])
                if oracle and rival.startswith("BART"):
                    found[f"{rival} oracle"] = best([problem.rival(rival, w) for w in weights])
            for method, (db, similarity, seconds) in found.items():
                rows.append({"image": image, "rate": rate, "method": method, "PSNR": db,
                             "SSIM": similarity, "CPU s": seconds})  # fmt: skip
                numbers = f"{db:6.2f} dB {similarity:.4f} {seconds:6.2f} s"
                print(f"{image:18} {rate}x {method:20} {numbers}", flush=True)
    return rows


def speed(image: str) -> None:
    """Wall and processor seconds a slice, one slice at a time and one slice a core."""
    problem = Problem(image, 4, 0.08, seed=7)
    cores = len(os.sched_getaffinity(0))
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def work(_: int) -> None:
        with torch.inference_mode():
            reconstruct(problem.kspace, problem.mask, "wavelet")

    work(0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for label, workers in (("one after the other", 1), (f"{cores} at a time", cores)):
        wall, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(4 * cores)))
        wall, cpu = ((t1 - t0) / (4 * cores) for t0, t1 in
                     ((wall, time.perf_counter()), (cpu, time.process_time())))  # fmt: skip
        print(f"ours wavelet, {label}: {wall:.3f} s wall, {cpu:.3f} CPU-s a slice")
    print(f"ours: {(peak - base) / 1024:.0f} MiB beyond the data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--oracle", action="store_true")
    parser.add_argument("--rows", type=int, default=99)
    parser.add_argument("--speed", action="store_true", help="only how fast ours is")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    absent = () if "CORE_MRI_DATA" in os.environ else tuple(REAL)
    scored = [name for name in SCORED if name not in absent][: options.rows]
    version = subprocess.run(["bart", "version"], capture_output=True, text=True, check=True).stdout
    print(f"BART {version.strip()}, torch {torch.__version__}, simulated k-space")
    speed(scored[-1])
    if options.speed:
        return
    rows = compare(scored, tuned([n for n in TUNING if n not in absent]), options.oracle)
    ours, rivals = ({(r["image"], r["rate"]): r for r in rows if r["method"] == method}
                    for method in ("ours wavelet", "BART TV"))  # fmt: skip
    won = sum(all(ours[k][m] >= rivals[k][m] for m in ("PSNR", "SSIM")) for k in ours)
    ratio = np.mean([rivals[k]["CPU s"] / ours[k]["CPU s"] for k in ours])
    print(f"PSNR and SSIM at least those of tuned BART TV on {won} of {len(ours)} rows")
    print(f"{ratio:.0f} times fewer CPU-seconds than BART TV")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
