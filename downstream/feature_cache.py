"""Features on disk, shared by cells, starts and machines that see the folder.

One safetensors file an entry, named by the hash of all that its tensors depend on: weights, voxels,
size, what was asked, device and version of torch. Files are written aside and renamed. Beyond the
limit those used least recently go; a file that vanished or is damaged is computed again.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core_mri.errors import DataError
from core_mri.models.encoder import Encoder, Features
from core_mri.runs import writing

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class FeatureCache:
    """A bounded folder of features.

    Args:
        folder: Made with the first entry.
        limit_bytes: Sum of the sizes of its files.
    """

    folder: Path
    limit_bytes: float

    def tensors(self, compute: Callable[[], Tensors], *key: object) -> Tensors:
        """What `compute` gives, from the folder when it is there; on the CPU, bit for bit the same.

        Args:
            compute: Called when there is no entry.
            *key: All that the tensors depend on besides the version of torch; JSON-able.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        name = hashlib.sha256(json.dumps([torch.__version__, *key]).encode()).hexdigest()
        path = self.folder / f"{name[:40]}.safetensors"
        try:
            found = load_file(path)
            os.utime(path)
        except FileNotFoundError:
            pass
        except (SafetensorError, OSError) as error:
            log.warning("cached features %s are damaged (%s): computed again", path.name, error)
        else:
            return found
        tensors = {name: tensor.cpu().contiguous() for name, tensor in compute().items()}
        self._keep(path, tensors)
        return tensors

    def _keep(self, path: Path, tensors: Tensors) -> None:
        """A full disk ends no cell: the features are only not kept."""
        from safetensors.torch import save

        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > self.limit_bytes:
            return
        aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._make_room(size)
                aside.write_bytes(save(tensors))
                aside.replace(path)
        except DataError as error:
            log.warning("features are not kept: %s", error)
            with contextlib.suppress(OSError):
                aside.unlink()

    def _make_room(self, size: int) -> None:
        """Other workers may remove the same files at the same time."""
        kept: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*.safetensors"):
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            kept.append((facts.st_mtime, facts.st_size, path))
        total = size + sum(bytes_ for _, bytes_, _ in kept)
        for _, bytes_, path in sorted(kept):
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= bytes_


class RememberingEncoder(Encoder):
    """An encoder that never moves, whose answers to a batch of images are looked up first.

    Make it with `remembering`; it shares the weights of the encoder that it stands for.
    """

    cache: FeatureCache
    fingerprint: str

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """As `Encoder.forward`; masked images are not looked up."""
        if mask is not None:
            return super().forward(images, mask)
        found = self.cache.tensors(
            lambda: super(RememberingEncoder, self).forward(images)._asdict(),
            *self._key(images),
        )
        return Features(**{name: tensor.to(images.device) for name, tensor in found.items()})

    def intermediates(self, images: Tensor, depths: Sequence[int]) -> list[Tensor]:
        """As `Encoder.intermediates`."""

        def compute() -> Tensors:
            levels = super(RememberingEncoder, self).intermediates(images, depths)
            return {str(place): level for place, level in enumerate(levels)}

        found = self.cache.tensors(compute, *self._key(images), list(depths))
        return [found[str(place)].to(images.device) for place in range(len(depths))]

    def _key(self, images: Tensor) -> tuple[object, ...]:
        content = images.detach().cpu().contiguous().numpy()
        digest = hashlib.sha256(content.tobytes()).hexdigest()
        return self.fingerprint, list(images.shape), digest, images.device.type


def remembering(encoder: Encoder, fingerprint: str, cache: FeatureCache | None) -> Encoder:
    """`encoder` itself without a cache, else one of the same weights that uses it.

    Args:
        encoder: Must not be trained afterwards.
        fingerprint: Hash of its weights.
        cache: Where features are kept.
    """
    if cache is None:
        return encoder
    found = copy.copy(encoder)
    found.__class__ = RememberingEncoder
    assert isinstance(found, RememberingEncoder)
    found.cache, found.fingerprint = cache, fingerprint
    return found
