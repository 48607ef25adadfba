"""`load_model`: a folder, here or on a hub, or a checkpoint named ``family:FILE``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core_mri.errors import WeightsError
from core_mri.weights.checkpoints import read_checkpoint
from core_mri.weights.folder import load_folder

if TYPE_CHECKING:
    from core_mri.models.classifier import Classifier
    from core_mri.models.encoder import Encoder
    from core_mri.models.generator import Generator
    from core_mri.models.promptable import PromptableSegmenter
    from core_mri.models.reconstruction import Reconstructor
    from core_mri.models.registry import CoilMode
    from core_mri.models.sam import SamEncoder
    from core_mri.models.segmenter import Segmenter

    Model = (
        Encoder
        | Segmenter
        | Classifier
        | SamEncoder
        | PromptableSegmenter
        | Reconstructor
        | Generator
    )

SCHEMES = (
    "hf",
    "mri-core",
    "sam",
    "medsam",
    "dinov2",
    "dinov3",
    "mae",
    "ijepa",
    "hf-dinov2",
    "timm",
    "fastmri-unet",
    "fastmri-varnet",
)


def load_model(source: str | Path, *, device: str = "auto", **options: object) -> Model:
    """Load a model, in evaluation mode.

    Nothing is downloaded unless ``hf:`` or ``download=True`` says so.

    Args:
        source: A weights folder or a run folder; ``core-mri-tiny``, which comes with the package;
            ``hf:owner/name`` or ``hf:owner/name@revision``,
            a weights folder on the Hugging Face hub; or ``mri-core:FILE``, ``sam:FILE``,
            ``medsam:FILE``, ``dinov2:FILE``, ``dinov3:FILE``, ``mae:FILE``, ``ijepa:FILE``,
            ``hf-dinov2:FILE`` (RAD-DINO too), ``timm:MODEL=FILE``, ``timm:MODEL``,
            ``fastmri-unet:FILE``, ``fastmri-varnet:FILE``.
        device: ``auto``, ``cpu``, ``cuda``, ...
        **options: For files: ``sha256``. MRI-CORE: ``layout`` ``vit`` or ``sam``, ``position``
            ``fixed`` or ``legacy``, ``normalization`` ``imagenet`` or ``none``, ``sam=FILE`` (with
            ``layout="sam"``: neck and decoder from there). Plain ViTs: ``image_size``,
            ``patch_size``, ``num_heads``. I-JEPA: ``branch`` ``target_encoder`` or ``encoder``.
            timm: ``image_size``, ``download``. Hub: ``endpoint``, the address of another server.
            fastMRI's U-Net: ``coils`` ``single``, ``multi`` or ``any``, what it was trained on.

    Returns:
        The model; ``model.card`` holds the facts it was saved with, or source, hash and the names
        of dropped tensors.

    Raises:
        WeightsError: WEIGHTS-01 when a file or folder is missing or damaged, WEIGHTS-02 when a
            tensor is missing, unexpected or of another shape (each is named), WEIGHTS-03 for an
            unknown option or model, WEIGHTS-04 when a checkpoint is damaged or holds more than
            tensors, WEIGHTS-05 when its hash differs, WEIGHTS-06 when it would have to be
            downloaded. From the hub: WEIGHTS-03 when there is no such repository or no answer.
        ConfigError: CONFIG-05 when the device does not exist.
    """
    from core_mri.devices import select_device

    scheme, separator, rest = str(source).partition(":")
    if not separator or scheme not in SCHEMES:
        _refuse_unknown(str(source), options, [])
        return load_folder(source, device=device)
    loaders: dict[str, Callable[..., Model]] = {"hf": _hub, "mri-core": _mri_core, "timm": _timm}
    loaders |= {"fastmri-unet": _fastmri_unet, "fastmri-varnet": _fastmri_varnet}
    loaders |= dict.fromkeys(("sam", "medsam"), _sam)
    loader = loaders.get(scheme, _plain)
    _refuse_unknown(str(source), options, inspect.getfullargspec(loader).kwonlyargs)
    model = loader(scheme, rest, **options)
    return model.to(select_device(device)).eval()


def _refuse_unknown(source: str, options: Mapping[str, object], known: Sequence[str]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise WeightsError(
            "WEIGHTS-03",
            f"unknown option for {source}: {', '.join(unknown)}.",
            fix=f"Allowed: {', '.join(known) or 'none'}.",
        )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise WeightsError("WEIGHTS-03", f"{name} is {value!r}, must be {' or '.join(allowed)}.")


def _hub(scheme: str, repository: str, *, endpoint: str | None = None) -> Model:
    from core_mri.weights.hub import pull

    return load_folder(pull(f"{scheme}:{repository}", endpoint=endpoint), device="cpu")


def _mri_core(
    scheme: str,
    file: str,
    *,
    layout: Literal["vit", "sam"] = "vit",
    position: Literal["fixed", "legacy"] = "fixed",
    normalization: Literal["imagenet", "none"] = "imagenet",
    sam: str = "",
    sha256: str = "",
    image_size: int = 0,
) -> Model:
    from core_mri.weights.layouts import load_plain_vit
    from core_mri.weights.sam_layouts import load_mri_core

    _one_of("layout", layout, ("vit", "sam"))
    _one_of("position", position, ("fixed", "legacy"))
    _one_of("normalization", normalization, ("imagenet", "none"))
    if layout == "vit" and sam:
        raise WeightsError("WEIGHTS-03", 'sam=FILE needs layout="sam".')
    path = Path(file)
    content, digest = read_checkpoint(path, sha256=sha256)
    model: Model
    if layout == "vit":
        model, dropped = load_plain_vit(
            scheme,
            content,
            path,
            position=position,
            normalization=normalization,
            image_size=image_size,
        )
    else:
        rest = (read_checkpoint(Path(sam))[0], Path(sam)) if sam else None
        model, dropped = load_mri_core(
            content, path, position=position, normalization=normalization, sam=rest
        )
    return _with_card(model, f"{scheme}:{file}", digest, dropped)


def _sam(scheme: str, file: str, *, sha256: str = "") -> Model:
    from core_mri.weights.sam_layouts import load_sam

    content, digest = read_checkpoint(Path(file), sha256=sha256)
    return _with_card(load_sam(scheme, content, Path(file)), f"{scheme}:{file}", digest, [])


def _plain(
    scheme: str,
    file: str,
    *,
    sha256: str = "",
    image_size: int = 0,
    patch_size: int = 0,
    num_heads: int = 0,
    branch: str = "",
) -> Model:
    from core_mri.weights.layouts import load_plain_vit

    path = Path(file)
    content, digest = read_checkpoint(path, sha256=sha256)
    model, dropped = load_plain_vit(
        scheme,
        content,
        path,
        image_size=image_size,
        patch_size=patch_size,
        num_heads=num_heads,
        branch=branch,
    )
    return _with_card(model, f"{scheme}:{file}", digest, dropped)


def _timm(
    scheme: str, named: str, *, sha256: str = "", image_size: int = 0, download: bool = False
) -> Model:
    from core_mri.weights.timm_models import load_timm

    name, separator, file = named.partition("=")
    if separator:
        content, digest = read_checkpoint(Path(file), sha256=sha256)
        model, dropped = load_timm(name, content, Path(file), image_size=image_size)
        return _with_card(model, f"{scheme}:{named}", digest, dropped)
    if not download:
        raise WeightsError(
            "WEIGHTS-06",
            f"{scheme}:{named} would be downloaded from the model hub.",
            fix=f"Say so with download=True, or give a file: {scheme}:{named}=FILE.",
        )
    model, dropped = load_timm(name, None, Path(named), image_size=image_size)
    return _with_card(model, f"{scheme}:{named}", "", dropped)


def _fastmri_unet(scheme: str, file: str, *, sha256: str = "", coils: CoilMode = "any") -> Model:
    from core_mri.weights.reconstruction_layouts import load_fastmri_unet

    _one_of("coils", coils, ("single", "multi", "any"))
    content, digest = read_checkpoint(Path(file), sha256=sha256)
    model, dropped = load_fastmri_unet(content, Path(file), coils=coils)
    return _with_card(model, f"{scheme}:{file}", digest, dropped)


def _fastmri_varnet(scheme: str, file: str, *, sha256: str = "") -> Model:
    from core_mri.weights.reconstruction_layouts import load_fastmri_varnet

    content, digest = read_checkpoint(Path(file), sha256=sha256)
    model, dropped = load_fastmri_varnet(content, Path(file))
    return _with_card(model, f"{scheme}:{file}", digest, dropped)


def _with_card(model: Model, source: str, digest: str, dropped: list[str]) -> Model:
    facts: Any = {"source": source, "sha256": digest, "dropped": dropped}
    model.card = facts
    return model
