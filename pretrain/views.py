"""Multi-crop views of single-channel slices, made on the device for a whole batch at once.

Shapes: B slices of their own sizes, V views of a kind, S side of a view. What happens to a sample
depends on the seed and its global index alone: not on the worker, the batch or its neighbors.

A crop is resized by two matrix products, ``Ry @ slice @ Rx.T`` with the antialiased triangle filter
of `torchvision` in the matrices, so crops of different sizes share one batched call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.errors import DataError
from pretrain.config import ViewsConfig
from pretrain.sampler import NOISE, VIEWS, random_stream

MIN_SIDE = 16
"""Shortest side of a slice that is used, px."""
_NUM_GLOBAL = 2
_CROP_ATTEMPTS = 10
_Floats = npt.NDArray[np.float64]


class Views(NamedTuple):
    """The views of a batch, float32 in [0, 1]."""

    global_views: Tensor
    """[B, 2, 1, S, S]."""
    local_views: Tensor
    """[B, V, 1, s, s]."""
    num_upsampled: int
    """Slices with a side shorter than that of a global view."""


def make_views(
    slices: Sequence[npt.NDArray[np.float32]],
    samples: npt.NDArray[np.int64],
    config: ViewsConfig,
    *,
    names: Sequence[str],
    seed: int,
    device: torch.device,
) -> Views:
    """Random crops of every slice, with random intensities.

    Args:
        slices: B arrays [H, W] in [0, 1], of any sizes.
        samples: [B], global sample indices.
        config: Sizes, scales, probabilities.
        names: [B], what to call each slice in an error.
        seed: Of the run.
        device: Where the views are computed.

    Raises:
        DataError: DATA-09 for a slice with a side shorter than `MIN_SIDE` px.
    """
    for name, image in zip(names, slices, strict=True):
        if min(image.shape) < MIN_SIDE:
            raise DataError(
                "DATA-09",
                f"{name}: {image.shape[0]}x{image.shape[1]} px, at least {MIN_SIDE} are needed.",
                fix=f"Leave it out with `where: rows >= {MIN_SIDE} and columns >= {MIN_SIDE}`.",
            )
    padded = pad_slices(slices).to(device)
    drawn = [
        _draw(image.shape, config, random_stream(seed, int(sample), VIEWS))
        for image, sample in zip(slices, samples, strict=True)
    ]
    values = np.stack(drawn)  # [B, 2 + V, fields]
    seeds = [int(random_stream(seed, int(sample), NOISE).integers(2**63)) for sample in samples]
    parts = []
    for size, columns in (
        (config.global_size, slice(0, _NUM_GLOBAL)),
        (config.local_size, slice(_NUM_GLOBAL, None)),
    ):
        fields = _Fields(*np.moveaxis(values[:, columns], -1, 0))
        boxes = np.stack([fields.top, fields.left, fields.height, fields.width], -1)
        images = crop_resize(padded, torch.from_numpy(boxes).to(device), size)
        images = _flip(images, fields)
        parts.append(_intensities(images, fields, seeds)[:, :, None])
        seeds = [value ^ 1 for value in seeds]
    small = sum(min(image.shape) < config.global_size for image in slices)
    return Views(parts[0], parts[1], small)


def pad_slices(slices: Sequence[npt.NDArray[np.float32]]) -> Tensor:
    """Slices of different sizes as one batch [B, max H, max W], zeros below and to the right."""
    height = max(image.shape[0] for image in slices)
    width = max(image.shape[1] for image in slices)
    batch = torch.zeros(len(slices), height, width)
    for row, image in zip(batch, slices, strict=True):
        row[: image.shape[0], : image.shape[1]] = torch.from_numpy(image)
    return batch


def crop_resize(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crop and resize, bilinear with antialiasing (`torchvision`'s ``resized_crop``).

    Args:
        images: [B, H, W].
        boxes: [B, V, 4]: top, left, height, width, px; within the image.
        size: S.

    Returns:
        Float32 [B, V, S, S].
    """
    top, left, height, width = boxes.float().unbind(-1)  # each [B, V]
    rows = _resize_matrix(top, height, images.shape[1], size)  # [B, V, S, H]
    columns = _resize_matrix(left, width, images.shape[2], size)  # [B, V, S, W]
    with torch.autocast(images.device.type, enabled=False):
        half = rows.flatten(1, 2) @ images  # [B, V * S, W]
        return half.unflatten(1, rows.shape[1:3]) @ columns.mT


def _resize_matrix(start: Tensor, length: Tensor, extent: int, size: int) -> Tensor:
    """Weights [B, V, size, extent] that resample `length` pixels from `start` on to `size` pixels.

    ``w(o, i) = max(0, 1 - |i + 1/2 - c(o)| / s)`` with c(o) the place of the output pixel and
    s = max(1, length / size); pixels outside the crop have weight 0 and rows sum to one.
    """
    scale = (length / size)[..., None, None]
    start, length = start[..., None, None], length[..., None, None]
    output = torch.arange(size, device=start.device)[:, None]
    pixel = torch.arange(extent, device=start.device)[None, :]
    center = start + (output + 0.5) * scale
    weights = (1 - (pixel + 0.5 - center).abs() / scale.clamp_min(1)).clamp_min(0)
    weights = weights * ((pixel >= start) & (pixel < start + length))
    return weights / weights.sum(-1, keepdim=True)


class _Fields(NamedTuple):
    """What is drawn for a view, each [B, V]; the order is that of `_draw`."""

    top: _Floats
    left: _Floats
    height: _Floats
    width: _Floats
    flip_rows: _Floats
    flip_columns: _Floats
    gamma: _Floats
    contrast: _Floats
    brightness: _Floats
    blur: _Floats
    noise: _Floats


def _draw(shape: tuple[int, ...], config: ViewsConfig, random: np.random.Generator) -> _Floats:
    """Numbers of all views of one sample: [2 + V, fields]; neutral values where nothing happens."""
    rows = []
    for view in range(_NUM_GLOBAL + config.num_local):
        scale = config.global_scale if view < _NUM_GLOBAL else config.local_scale
        box = _draw_box(shape, scale, config.aspect, random)
        chance = random.random(5)
        amount = random.random(5)
        changed = chance[2] < config.intensity_probability
        rows.append(
            (
                *box,
                chance[0] < config.flip_rows,
                chance[1] < config.flip_columns,
                _log_between(config.gamma, amount[0]) if changed else 1.0,
                1 + config.contrast * (2 * amount[1] - 1) if changed else 1.0,
                config.brightness * (2 * amount[2] - 1) if changed else 0.0,
                _log_between(config.blur_sigma_px, amount[3])
                if chance[3] < config.blur_probability
                else 0.0,
                _between(config.noise_sigma, amount[4])
                if chance[4] < config.noise_probability
                else 0.0,
            )
        )
    return np.array(rows, dtype=np.float64)


def _draw_box(
    shape: tuple[int, ...],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    random: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Top, left, height, width as `torchvision`'s RandomResizedCrop draws them; whole pixels."""
    rows, columns = shape
    for _ in range(_CROP_ATTEMPTS):
        area = rows * columns * _between(scale, random.random())
        ratio = _log_between(aspect, random.random())
        height, width = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < height <= rows and 0 < width <= columns:
            break
    else:
        height = width = min(rows, columns)
    top = int(random.integers(rows - height + 1))
    left = int(random.integers(columns - width + 1))
    return top, left, height, width


def _flip(images: Tensor, fields: _Fields) -> Tensor:
    for flag, axis in ((fields.flip_rows, -2), (fields.flip_columns, -1)):
        if flag.any():
            chosen = torch.from_numpy(flag > 0).to(images.device)
            images = torch.where(chosen[..., None, None], images.flip(axis), images)
    return images


def _intensities(images: Tensor, fields: _Fields, seeds: Sequence[int]) -> Tensor:
    """Gamma, contrast about the mean, brightness, blur, Rician noise; [B, V, S, S] in [0, 1]."""
    gamma, contrast, brightness, blur, noise = (
        torch.from_numpy(values).float().to(images.device)[..., None, None]
        for values in fields[-5:]
    )
    images = images.clamp(0, 1).pow(gamma)
    mean = images.mean((-2, -1), keepdim=True)
    images = (mean + (images - mean) * contrast + brightness).clamp(0, 1)
    chosen = blur[..., 0, 0] > 0
    if fields.blur.any():
        images[chosen] = _gaussian_blur(images[chosen], blur[chosen])
    if fields.noise.any():
        images = _rician(images, noise, seeds)
    return images.clamp(0, 1)


def _gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur [N, S, S] by sigma [N, 1, 1] px; at the border the kernel is cut and renormalized."""
    place = torch.arange(images.shape[-1], device=images.device)
    distance = place[:, None] - place[None, :]
    kernel = torch.exp(-0.5 * (distance / sigma).square())  # [N, S, S]
    kernel = kernel / kernel.sum(-1, keepdim=True)
    return kernel @ images @ kernel.mT


def _rician(images: Tensor, sigma: Tensor, seeds: Sequence[int]) -> Tensor:
    """Magnitude of the image plus complex Gaussian noise (Gudbjartsson and Patz, MRM 1995)."""
    real, imaginary = torch.zeros_like(images), torch.zeros_like(images)
    generator = torch.Generator(device=images.device)
    for row, seed in enumerate(seeds):
        if bool((sigma[row] > 0).any()):
            generator.manual_seed(seed)
            real[row].normal_(generator=generator)
            imaginary[row].normal_(generator=generator)
    noisy = torch.hypot(images + sigma * real, sigma * imaginary)
    return torch.where(sigma > 0, noisy, images)


def _between(limits: tuple[float, float], amount: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * amount


def _log_between(limits: tuple[float, float], amount: float) -> float:
    return float(math.exp(_between((math.log(limits[0]), math.log(limits[1])), amount)))
