"""The mask of a scan as `core-mri reconstruct` was asked to make it."""

from __future__ import annotations

from core_mri.files.kspace import KSpace
from core_mri.kspace_sampling import Sampling, drawn_sampling, own_sampling
from core_mri.physics.masks import draw_mask, mask_seed
from downstream.reconstruction.config import ReconstructConfig


def sampling_of(kspace: KSpace, config: ReconstructConfig) -> Sampling:
    """The mask of the file, else the one that is drawn, else everything that is not zero.

    Raises:
        ConfigError: CONFIG-01 or CONFIG-05 for a mask that cannot be drawn, CONFIG-05 when there is
            no such volume.
    """
    own = own_sampling(kspace, config.volume)
    if config.mask is None or not own.mask.all():
        return own
    name = kspace.path.name if kspace.path is not None else ""
    drawn = draw_mask(
        config.mask,
        kspace.shape[2:],
        center_fractions=[config.center_fraction],
        accelerations=[config.acceleration],
        seed=mask_seed(name) if config.seed == "FILE" else int(config.seed),
    )
    return drawn_sampling(own, drawn)
