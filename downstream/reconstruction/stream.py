"""A raw data file to slices, streamed: read, undersample, reconstruct, crop, keep aside.

Finished slices lie in a hidden folder beside the output until all are done, so that an interrupted
command goes on where it stopped and the output appears whole or not at all.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from core_mri.config import to_mapping
from core_mri.devices import available_cores, select_device
from core_mri.files.kspace import KSpace, KSpaceHeader, Layout, read_kspace
from core_mri.kspace_inference import check_network, image_volume
from core_mri.kspace_sampling import Sampling, check_finite, image_size
from core_mri.models.reconstruction import Reconstructor
from core_mri.off_distribution import Judgement
from core_mri.physics.coils import root_sum_of_squares
from core_mri.physics.fourier import ifft2c
from core_mri.physics.preparation import center_crop
from core_mri.predictor import Predictor
from core_mri.runs import write_atomically, writing
from downstream.reconstruction.config import ReconstructConfig
from downstream.reconstruction.engine import Image, Slice, Solver
from downstream.reconstruction.network import load_network, weights_hash
from downstream.reconstruction.outputs import write_output
from downstream.reconstruction.sampling import sampling_of

log = logging.getLogger(__name__)

_NO_RESULT = ("out", "report", "device", "json")
"""Settings that change no slice."""


@dataclass(frozen=True)
class Scan:
    """What was read and reconstructed."""

    config: ReconstructConfig
    header: KSpaceHeader
    layout: Layout
    shape: tuple[int, int, int, int]
    """Slices, coils, readout, phase, of the raw data."""
    sampling: Sampling
    images: Image
    """``[slices, H, W]``."""
    reference: Image | None
    """Reference image of the file, else root sum of squares of all samples where a mask was drawn,
    else None."""
    reference_name: str
    weights: list[float | None]
    residuals: list[float | None]
    """``||M F S x - y|| / ||y||`` of each slice, None without a center for coil maps."""
    errors: Image | None
    """Estimated errors, of the shape of `images`, where asked for."""
    wall_s: list[float]
    """Seconds of each slice."""
    cpu_s: list[float]
    total_s: float
    """Wall seconds of this start, with reading and writing."""
    judgement: Judgement | None = None
    """How the images compare with what the network saw, where its weights tell."""


def reconstruct_file(
    config: ReconstructConfig, *, progress: Callable[[int, int], None] | None = None
) -> Scan:
    """Reconstruct one volume of a file and write it.

    Args:
        config: What to do.
        progress: Told after each slice how many are done, and of how many.

    Returns:
        What was done, for tables and reports.

    Raises:
        ConfigError: A mask, volume, backend or output that cannot be.
        DataError: What `core_mri.files.read_kspace` raises; DATA-04 for samples that are not
            finite, DATA-07 when the output cannot be written, DATA-21 without a center for maps.
        WeightsError: What `core_mri.load_model` raises; WEIGHTS-10 to WEIGHTS-12 for weights that
            do not fit the scan.
    """
    start = time.perf_counter()
    device = str(select_device(config.device))
    if device == "cpu":
        keep_freed_memory()
    with read_kspace(
        config.kspace, whiten=config.whiten, remove_oversampling=config.remove_oversampling
    ) as kspace:
        sampling = sampling_of(kspace, config)
        size = image_size(kspace)
        network = None
        if config.is_network:
            network = check_network(load_network(config.source, device), kspace)
        solver = Solver(config, sampling, size, device, network)
        log.info(
            "%s: %s, %.2f-fold undersampled, to %d x %d", config.kspace.name, kspace,
            sampling.acceleration, *size,
        )  # fmt: skip
        if kspace.num_volumes > 1:
            log.warning(
                "volume %d of %d; the others are reconstructed with --volume",
                config.volume, kspace.num_volumes,
            )  # fmt: skip
        aside = _Aside.open(config)
        missing = aside.missing(kspace)
        found = kspace.shape[0] - len(missing)
        for index, done, reference in _slices(kspace, solver, missing):
            aside.save(index, done, _reference(kspace, index, reference, size))
            told = "none" if done.residual is None else f"{done.residual:.4f}"
            log.info(
                "slice %d of %d: %.2f s, residual of the measured samples %s",
                index + 1, kspace.shape[0], done.wall_s, told,
            )  # fmt: skip
            found += 1
            if progress is not None:
                progress(found, kspace.shape[0])
        kept = aside.load(kspace.shape[0])
        write_output(
            config.out, kept["image"], kspace.header, kspace.shape, config, kept.get("error")
        )
        aside.remove()
        references = kept.get("reference")
        reference_name = kspace.target_name or "root sum of squares of all samples"
        numbers = kept["numbers"]
        weights, residuals = (
            [None if np.isnan(n) else float(n) for n in column] for column in numbers.T[:2]
        )
        return Scan(
            config, kspace.header, kspace.layout, kspace.shape, sampling, kept["image"], references,
            reference_name if references is not None else "", weights, residuals,
            kept.get("error"), numbers[:, 2].tolist(), numbers[:, 3].tolist(),
            time.perf_counter() - start, _judged(network, kept["image"], kspace),
        )  # fmt: skip


def _judged(network: Reconstructor | None, images: Image, kspace: KSpace) -> Judgement | None:
    """Whether the images are like those of the training; logs a warning when they are not."""
    if network is None or not images.any():
        return None
    judgement = Predictor(network).judge(image_volume(images, kspace.header, kspace.shape, ""))
    if judgement is not None and judgement.unlike:
        log.warning("a scan %s: do not rely on the images without looking", judgement)
    return judgement


def keep_freed_memory() -> None:
    """Ask glibc to keep large freed blocks for the next use, as long as this process lives.

    By default they go back to the kernel after every operation, and faulting their pages in again
    costs as much as the Fourier transforms. Nothing happens on other systems.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            library.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _slices(
    kspace: KSpace, solver: Solver, indices: list[int]
) -> Iterator[tuple[int, Slice, Image | None]]:
    """Index, slice and, where samples were left out on purpose, the image of all of them."""
    # One thread a slice: more of them spin and wait for each other where cores are shared.
    torch.set_num_threads(1)
    on_cpu = solver.device == "cpu"
    workers = min(available_cores(), max(len(indices), 1)) if on_cpu else 1

    def work(index: int, samples: npt.NDArray[np.complex64]) -> tuple[int, Slice, Image | None]:
        done = solver.reconstruct_slice(samples, f"{solver.config.kspace}, slice {index}")
        whole = None
        if solver.sampling.drawn:
            whole = root_sum_of_squares(ifft2c(torch.from_numpy(samples)), 0).numpy()
        return index, done, whole

    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(indices), workers):
            chunk = []
            for index in indices[first : first + workers]:
                samples = kspace.read_slice(index, solver.config.volume)
                check_finite(kspace, index, samples)
                chunk.append(pool.submit(work, index, samples))
            yield from (future.result() for future in chunk)


def _reference(
    kspace: KSpace, index: int, whole: Image | None, size: tuple[int, int]
) -> Image | None:
    """The reference image of the file where it has one, else that of all samples."""
    target = kspace.target(index)
    if target is not None:
        return _crop(target, size)
    return None if whole is None else _crop(whole, size)


def _crop(image: Image, size: tuple[int, int]) -> Image:
    rows, columns = (min(n, m) for n, m in zip(size, image.shape, strict=True))
    return np.ascontiguousarray(center_crop(torch.from_numpy(image), (rows, columns)).numpy())


@dataclass(frozen=True)
class _Aside:
    """Finished slices of an unfinished output."""

    folder: Path

    @classmethod
    def open(cls, config: ReconstructConfig) -> _Aside:
        """Continue those of the same settings and file; throw others away."""
        facts = config.kspace.stat()
        settings = {k: v for k, v in to_mapping(config).items() if k not in _NO_RESULT}
        settings |= {"bytes": facts.st_size, "modified": facts.st_mtime_ns}
        settings |= {"sha256": weights_hash(config.source) if config.is_network else ""}
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        aside = cls(config.out.with_name(f".{config.out.name}.slices"))
        marker = aside.folder / "settings.sha256"
        with writing(aside.folder):
            if not (marker.exists() and marker.read_text() == key):
                shutil.rmtree(aside.folder, ignore_errors=True)
                aside.folder.mkdir(parents=True)
                marker.write_text(key)
        return aside

    def missing(self, kspace: KSpace) -> list[int]:
        """Slices still to do."""
        indices = [i for i in range(kspace.shape[0]) if not self._path(i).exists()]
        if len(indices) < kspace.shape[0]:
            log.info("%d slices are done already", kspace.shape[0] - len(indices))
        return indices

    def save(self, index: int, done: Slice, reference: Image | None) -> None:
        """Keep one slice."""
        numbers = [done.weight, done.residual, done.wall_s, done.cpu_s]
        arrays = {
            "image": done.image,
            "numbers": np.array([np.nan if n is None else n for n in numbers]),
            "reference": reference,
            "error": done.error,
        }
        content = io.BytesIO()
        np.savez(content, **{k: a for k, a in arrays.items() if a is not None})  # type: ignore[arg-type]
        with writing(self.folder):
            write_atomically(self._path(index), content.getvalue())

    def load(self, num_slices: int) -> dict[str, Image]:
        """Stacks of all slices: ``image``, ``numbers``, and ``reference`` and ``error`` if kept.

        The numbers are weight, residual, wall and processor seconds.
        """
        slices = []
        for index in range(num_slices):
            with np.load(self._path(index), allow_pickle=False) as kept:
                slices.append(dict(kept))
        return {name: np.stack([kept[name] for kept in slices]) for name in slices[0]}

    def remove(self) -> None:
        """The output is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.npz"
