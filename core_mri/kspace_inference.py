"""A scan through a reconstruction network, slice by slice, to a volume with its geometry."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from core_mri.errors import CoreMRIError, DataError, WeightsError
from core_mri.files.kspace import KSpace, KSpaceHeader, Samples, image_affine
from core_mri.kspace_sampling import Bools, check_finite, image_size, own_sampling
from core_mri.models.reconstruction import Reconstructor
from core_mri.volume import FactValue, Volume

Image = npt.NDArray[np.float32]


def check_network(model: object, kspace: KSpace) -> Reconstructor:
    """The model, if it reconstructs what this scan holds.

    Raises:
        WeightsError: WEIGHTS-10 for a model of another kind, WEIGHTS-12 for one of another number
            of coils.
    """
    if not isinstance(model, Reconstructor):
        raise WeightsError(
            "WEIGHTS-10",
            f"these weights ({type(model).__name__}) do not reconstruct k-space.",
            fix="Give weights of a reconstruction network (fastmri-unet:FILE, fastmri-varnet:FILE, "
            "or a folder of one), or zero-filled, cg-sense, tv or wavelet.",
        )
    if model.coils != "any" and (model.coils == "single") != kspace.single_coil:
        wanted = "one coil" if model.coils == "single" else "several coils"
        raise WeightsError(
            "WEIGHTS-12",
            f"{kspace.path or 'k-space'}: {kspace.shape[1]} coil"
            f"{'' if kspace.single_coil else 's'}, these weights take k-space of {wanted}.",
            fix="Use weights that were trained on such scans, or wavelet.",
        )
    return model


def network_image(
    model: Reconstructor,
    samples: Samples,
    mask: Bools,
    *,
    size: tuple[int, int],
    num_low: int = 0,
    name: str = "",
) -> Image:
    """One slice ``[h, w]``.

    Args:
        model: In evaluation mode.
        samples: ``[coils, readout, phase]``, zero where not measured.
        mask: ``[phase]`` or ``[readout, phase]``, as ``model.padding_measured`` wants it.
        size: Rows and columns of the image.
        num_low: Lines of the center, 0 finds them.
        name: File and slice, for messages.

    Raises:
        CoreMRIError: What the model raises, after the name.
        DataError: DATA-40 for an image that is not finite.
    """
    device = next(model.parameters()).device
    kspace, lines = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (samples, mask))
    try:
        images = model.reconstruct(kspace[None], lines, size=size, num_low=num_low)
    except CoreMRIError as error:
        raise type(error)(error.code, f"{name}: {error.message}", fix=error.fix) from None
    found: Image = images[0].to(torch.float32).cpu().numpy()
    if not np.isfinite(found).all():
        raise DataError(
            "DATA-40",
            f"{name}: the network gave values that are not finite.",
            fix="Are the weights whole? They, or samples they never saw the like of, overflow.",
        )
    return found


def reconstruct_scan(model: object, kspace: KSpace, *, volume: int = 0) -> Volume:
    """All slices of a scan, by the mask of the file.

    Args:
        model: A `Reconstructor`, in evaluation mode.
        kspace: An open scan.
        volume: Which, where the scan has several.

    Returns:
        Magnitudes (columns, rows, slices); see `image_volume`.

    Raises:
        WeightsError: WEIGHTS-10 or WEIGHTS-12 as `check_network`.
        ConfigError: CONFIG-05 when there is no such volume.
        DataError: DATA-04 for samples that are not finite, DATA-21 without a center for coil maps.
    """
    network = check_network(model, kspace)
    sampling, size = own_sampling(kspace, volume), image_size(kspace)
    images = []
    for index in range(kspace.shape[0]):
        samples = kspace.read_slice(index, volume)
        check_finite(kspace, index, samples)
        kept, mask = sampling.apply(samples)
        if not network.padding_measured:
            mask = sampling.measured_only(kept)
        name = f"{kspace.path or 'k-space'}, slice {index}"
        images.append(network_image(network, kept, mask, size=size, name=name))
    return image_volume(np.stack(images), kspace.header, kspace.shape, type(network).__name__)


def image_volume(
    images: Image, header: KSpaceHeader, shape: tuple[int, int, int, int], source: str
) -> Volume:
    """Columns, rows, slices with the geometry of the scan.

    True geometry where the raw data states it (ISMRMRD); else voxel sizes from the field of view,
    around the origin, and the fact ``assumed_geometry`` (fastMRI, ``.npy``). Rows run along the
    readout, columns along the phase encoding.

    Args:
        images: ``[slices, H, W]``, the middle of the encoded field of view.
        header: Of the raw data.
        shape: Slices, coils, readout, phase of the raw data.
        source: How it was made.
    """
    affine, stated = image_affine(header, shape)
    # `center_crop` keeps from (n - crop) // 2 on.
    first = [(n - crop) // 2 for n, crop in zip(shape[2:], images.shape[1:], strict=True)]
    affine = affine.copy()
    affine[:3, 3] += affine[:3, 1] * first[0] + affine[:3, 2] * first[1]
    facts: dict[str, FactValue] = {k: v for k, v in header.facts.items() if k != "ProtocolName"}
    protocol = str(header.facts.get("SeriesDescription") or header.facts.get("ProtocolName") or "")
    geometry = "" if stated else ", synthetic geometry"
    facts["SeriesDescription"] = f"{protocol} {source}{geometry}".strip()[:64]
    facts["ImageType"] = "DERIVED\\PRIMARY\\M"
    if not stated:
        facts["assumed_geometry"] = True
    return Volume(images.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]], facts=facts)
