"""Slices on their way to the device: in the type they are stored in, in one copy.

uint8 or int16 instead of float32 is a quarter or a half of the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_registry.slices import StoredSlice

_TYPES = {np.dtype(name): getattr(torch, name) for name in ("uint8", "int16", "uint16", "float16")}
_ALIGNMENT = 16


def upload(slices: Sequence[StoredSlice], device: torch.device) -> Tensor:
    """Images of different sizes as one batch on `device`, scaled there.

    Args:
        slices: B stored slices; types wider than 16 bits travel as float32.
        device: Where the images shall be.

    Returns:
        Float32 [B, max H, max W] in [0, 1]; what lies below and to the right of an image is
        without meaning.
    """
    payloads = [_sendable(item.payload) for item in slices]
    ends = np.cumsum([-(-payload.nbytes // _ALIGNMENT) * _ALIGNMENT for payload in payloads])
    packed = torch.empty(int(ends[-1]), dtype=torch.uint8, pin_memory=device.type == "cuda")
    starts = [0, *ends[:-1].tolist()]
    bytes_ = packed.numpy()
    for start, payload in zip(starts, payloads, strict=True):
        bytes_[start : start + payload.nbytes] = payload.ravel().view(np.uint8)
    packed = packed.to(device, non_blocking=True)
    height, width = np.max([payload.shape for payload in payloads], 0).tolist()
    images = torch.zeros(len(slices), height, width, device=device)
    for image, start, payload in zip(images, starts, payloads, strict=True):
        own = packed[start : start + payload.nbytes].view(_TYPES.get(payload.dtype, torch.float32))
        image[: payload.shape[0], : payload.shape[1]] = own.view(payload.shape)
    shift, gain = torch.tensor([[item.shift, item.gain] for item in slices]).to(device).unbind(1)
    return images.sub_(shift[:, None, None]).mul_(gain[:, None, None]).clamp_(0, 1)


def num_bytes(slices: Sequence[StoredSlice]) -> int:
    """Bytes of the voxels that `upload` sends."""
    return sum(_sendable(item.payload).nbytes for item in slices)


def _sendable(payload: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return payload if payload.dtype in _TYPES else payload.astype(np.float32, copy=False)
