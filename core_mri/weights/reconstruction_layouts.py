"""Checkpoints of fastMRI's networks for reconstruction: sizes from the tensors, strict loading.

Files are state dicts, or checkpoints of its Lightning modules, whose tensors begin with ``unet.``
or ``varnet.`` beside the window of the loss (facebookresearch/fastMRI, `fastmri/pl_modules/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_mri.errors import WeightsError
from core_mri.models import create_reconstructor
from core_mri.models.registry import CoilMode, ReconstructorConfig, UnetConfig, VarNetConfig
from core_mri.weights.checkpoints import tensors_of
from core_mri.weights.strict import fill

if TYPE_CHECKING:
    from torch import Tensor

    from core_mri.models.reconstruction import Reconstructor

DROPPED = {"loss.w": "window of the SSIM loss"}


def load_fastmri_unet(
    content: Mapping[str, Any], path: Path, *, coils: CoilMode
) -> tuple[Reconstructor, list[str]]:
    """The U-Net of fastMRI.

    Args:
        content: The checkpoint.
        path: Its file, for messages.
        coils: What k-space it was trained on, which no file says.

    Returns:
        The network, and the names of the tensors that were dropped.

    Raises:
        WeightsError: WEIGHTS-02 for tensors of another network, WEIGHTS-04 when there are none.
    """
    tensors, dropped = _tensors(content, "unet.", path)
    with _named(tensors, "fastmri-unet", path):
        channels, pools = _sizes(tensors, "")
        config = UnetConfig(
            channels=channels,
            pools=pools,
            in_channels=tensors["down_sample_layers.0.layers.0.weight"].shape[1],
            out_channels=tensors[f"up_conv.{pools - 1}.1.weight"].shape[0],
            coils=coils,
        )
    return _filled(config, tensors, path), dropped


def load_fastmri_varnet(content: Mapping[str, Any], path: Path) -> tuple[Reconstructor, list[str]]:
    """The variational network of fastMRI; arguments and errors as `load_fastmri_unet`."""
    tensors, dropped = _tensors(content, "varnet.", path)
    with _named(tensors, "fastmri-varnet", path):
        channels, pools = _sizes(tensors, "cascades.0.model.unet.")
        map_channels, map_pools = _sizes(tensors, "sens_net.norm_unet.unet.")
        config = VarNetConfig(
            cascades=len({key.split(".")[1] for key in tensors if key.startswith("cascades.")}),
            channels=channels,
            pools=pools,
            map_channels=map_channels,
            map_pools=map_pools,
        )
    return _filled(config, tensors, path), dropped


def _tensors(
    content: Mapping[str, Any], prefix: str, path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors without the prefix of a Lightning module, and the names of those to drop."""
    found = tensors_of(content, ("state_dict",), path)
    kept = {key.removeprefix(prefix): value for key, value in found.items() if key not in DROPPED}
    return kept, [key for key in found if key in DROPPED]


@contextmanager
def _named(tensors: Mapping[str, Tensor], scheme: str, path: Path) -> Iterator[None]:
    """A tensor that is not there says that the file is another network's."""
    try:
        yield
    except (KeyError, IndexError) as error:
        raise WeightsError(
            "WEIGHTS-02",
            f"{path}: no {scheme}, it lacks {error}; it holds {', '.join(list(tensors)[:3])}, ...",
            fix="fastMRI's networks are fastmri-unet:FILE and fastmri-varnet:FILE.",
        ) from None


def _filled(config: ReconstructorConfig, tensors: dict[str, Tensor], path: Path) -> Reconstructor:
    model = create_reconstructor(config)
    fill(model, tensors, path)
    return model


def _sizes(tensors: Mapping[str, Tensor], prefix: str) -> tuple[int, int]:
    """Channels and poolings of the U-Net whose names begin so."""
    channels = tensors[f"{prefix}down_sample_layers.0.layers.0.weight"].shape[0]
    start = f"{prefix}down_sample_layers."
    levels = {key[len(start) :].split(".")[0] for key in tensors if key.startswith(start)}
    return channels, len(levels)
