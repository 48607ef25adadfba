"""A weights folder is what one shares: ``config.json``, ``model.safetensors``, ``README.md``.

``config.json`` holds what is needed to build the network and to use it rightly, and the SHA-256 of
the tensors; loading is strict and reads no pickle.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_mri.config import load_config
from core_mri.errors import CoreMRIError, WeightsError
from core_mri.models import MODELS, create_reconstructor, create_sam
from core_mri.models.registry import RECONSTRUCTORS, AdapterConfig, EncoderConfig, SamConfig
from core_mri.runs import file_sha256, write_atomically, writing
from core_mri.training_statistics import STATISTICS, load_statistics
from core_mri.weights.card import model_card
from core_mri.weights.released import released_folder, released_names
from core_mri.weights.strict import fill

if TYPE_CHECKING:
    from torch import Tensor, nn

    from core_mri.models.classifier import Classifier
    from core_mri.models.encoder import Encoder
    from core_mri.models.generator import Generator
    from core_mri.models.promptable import PromptableSegmenter
    from core_mri.models.reconstruction import Reconstructor
    from core_mri.models.segmenter import Segmenter

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = 1
INPUT_CONTRACT = {
    "channels": 1,
    "range": [0.0, 1.0],
    "window_percentiles": [0.5, 99.5],
    "window_scope": "volume",
}
"""How images are prepared for every model of this project: one window per volume, then [0, 1]."""


def save_model(
    model: Encoder | Segmenter | Classifier | PromptableSegmenter | Reconstructor | Generator,
    folder: str | Path,
    card: Mapping[str, Any] | None = None,
    *,
    half: bool = False,
) -> Path:
    """Write a weights folder; each file is written aside and renamed, ``config.json`` last.

    Args:
        model: An encoder, a segmenter, a classifier, a promptable model, a reconstructor or a
            generator.
        folder: Created when missing; files of an older save are replaced.
        card: Facts for the model card: see `core_mri.weights.card.model_card`.
        half: Keep float32 tensors as float16, which halves the file; `load_folder` computes in
            float32 all the same.

    Returns:
        The folder.

    Raises:
        DataError: DATA-07 when the folder cannot be written.
        WeightsError: WEIGHTS-02 when the model is of a kind that has no folder layout.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    config = _describe(model)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STATISTICS).unlink(missing_ok=True)  # of an older save
        aside = folder / f".{TENSORS}.partial"
        tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        if half:
            tensors = {name: _halved(tensor) for name, tensor in tensors.items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside)
        config["sha256"] = file_sha256(aside)
        os.replace(aside, folder / TENSORS)  # noqa: PTH105
        text = model_card(config, card or {})
        write_atomically(folder / CARD, text.encode())
        facts = json.dumps(config | {"card": dict(card or {})}, indent=2)
        write_atomically(folder / CONFIG, f"{facts}\n".encode())
    return folder


def _halved(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def load_folder(
    source: str | Path, *, device: str = "auto"
) -> Encoder | Segmenter | Classifier | PromptableSegmenter | Reconstructor | Generator:
    """Load a model, in evaluation mode.

    Args:
        source: A weights folder, or a run folder that holds one in ``weights/``.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Returns:
        An `Encoder`, `Segmenter`, `Classifier`, `PromptableSegmenter`, `Reconstructor` or
        `Generator`; ``model.card`` holds the facts it was saved with, ``model.statistics`` what it
        saw (`core_mri.training_statistics`), where the folder tells.

    Raises:
        DataError: DATA-38 when the statistics are damaged or of other weights.
        WeightsError: WEIGHTS-01 when the folder is missing, incomplete or damaged, WEIGHTS-02 when
            a tensor is missing, unexpected or of another shape (each is named).
        ConfigError: CONFIG-05 when the device does not exist.
    """
    from core_mri.devices import select_device

    folder = find_folder(Path(source))
    config = read_config(folder)
    tensors = read_tensors(folder, config["sha256"])
    model = _build(folder, config)
    fill(model, tensors, folder / TENSORS)
    model.card = config.get("card", {})
    if (folder / STATISTICS).is_file():
        statistics: Any = load_statistics(folder, config["sha256"])
        model.statistics = statistics
    return model.to(select_device(device)).eval()


def update_card(source: str | Path, facts: Mapping[str, Any]) -> Path:
    """Add facts to the card of a weights folder; its tensors and their hash stay as they are.

    Args:
        source: A weights folder, or a run folder that holds one.
        facts: As in `save_model`; a key that is there is replaced.

    Returns:
        The weights folder.

    Raises:
        WeightsError: WEIGHTS-01 when it is missing or its ``config.json`` is damaged.
        DataError: DATA-07 when it cannot be written.
    """
    folder = find_folder(Path(source))
    config = read_config(folder)
    card = dict(config.get("card", {})) | dict(facts)
    with writing(folder):
        write_atomically(folder / CARD, model_card(config, card).encode())
        text = json.dumps(config | {"card": card}, indent=2)
        write_atomically(folder / CONFIG, f"{text}\n".encode())
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``, checked for its format number.

    Raises:
        WeightsError: WEIGHTS-01 when it is missing, no JSON or of a newer format.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        number = config["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            "WEIGHTS-01", f"{folder / CONFIG}: not a configuration of a weights folder ({error})."
        ) from None
    if number != FORMAT:
        raise WeightsError(
            "WEIGHTS-01",
            f"{folder / CONFIG}: format {number}, this version reads {FORMAT}.",
            fix="Update core-mri.",
        )
    return dict(config)


def find_folder(source: Path) -> Path:
    """The weights folder that is `source`, that a run folder holds, or that comes by this name.

    Raises:
        WeightsError: WEIGHTS-01 when there is none.
    """
    places = [source, source / "weights"]
    if str(source) in released_names():
        places.append(released_folder(source))
    for folder in places:
        if (folder / CONFIG).is_file():
            return folder
    raise WeightsError(
        "WEIGHTS-01",
        f"{source}: no weights folder (no {CONFIG} in it or in its `weights`).",
        fix=f"Give a weights or run folder, or {', '.join(released_names())}; for random weights "
        f"use core_mri.create_model with one of {', '.join(sorted(MODELS))}.",
    )


def _describe(model: nn.Module) -> dict[str, Any]:
    """What is needed to build `model` again."""
    from core_mri.models.classifier import Classifier
    from core_mri.models.encoder import Encoder
    from core_mri.models.generator import Generator
    from core_mri.models.heads import decoder_name
    from core_mri.models.neck import NeckedEncoder
    from core_mri.models.promptable import PromptableSegmenter
    from core_mri.models.reconstruction import Reconstructor
    from core_mri.models.sam import SamEncoder
    from core_mri.models.segmenter import Segmenter

    if isinstance(model, Reconstructor):
        return {
            "format": FORMAT,
            "kind": "reconstructor",
            "network": type(model).__module__.rpartition(".")[2],
            "sizes": dataclasses.asdict(model.config),
        }
    common: dict[str, Any] = {"format": FORMAT, "input": INPUT_CONTRACT}
    if isinstance(model, Segmenter):
        return common | {
            "kind": "segmenter",
            **_describe_encoder(model.encoder),
            "head": {"decoder": decoder_name(model.head), **model.head.arguments},
            "depths": list(model.depths),
            "labels": {str(index): name for index, name in model.labels.items()},
            "image_size": model.image_size,
            "sequences": list(model.sequences),
            "neighbours": model.neighbours,
            "inference": dataclasses.asdict(model.inference),
        }
    if isinstance(model, Generator):
        return common | {
            "kind": "generator",
            "generator": dataclasses.asdict(model.config),
            "labels": {str(index): name for index, name in model.labels.items()},
            "sequences": list(model.sequences),
        }
    if isinstance(model, Classifier):
        return common | {
            "kind": "classifier",
            **_describe_encoder(model.encoder),
            "classes": list(model.classes),
            "level": model.level,
            "image_size": model.image_size,
            "attention": model.attention,
        }
    if isinstance(model, Encoder):
        return common | {"kind": "encoder", **_describe_encoder(model)}
    if isinstance(model, PromptableSegmenter) and isinstance(model.image_encoder, SamEncoder):
        return common | {
            "kind": "promptable",
            "encoder": dataclasses.asdict(model.image_encoder.config),
        }
    if isinstance(model, PromptableSegmenter) and isinstance(model.image_encoder, NeckedEncoder):
        return common | {
            "kind": "promptable",
            **_describe_encoder(model.image_encoder.encoder),
            "depths": list(model.image_encoder.depths),
            "decoder": model.arguments,
        }
    raise WeightsError(
        "WEIGHTS-02",
        "a weights folder holds an Encoder, a Segmenter, a Classifier, a PromptableSegmenter, a "
        f"Reconstructor or a Generator, got {type(model).__name__}.",
    )


def _describe_encoder(encoder: Encoder) -> dict[str, Any]:
    facts = {"encoder": dataclasses.asdict(encoder.config)}
    return facts | ({"adapters": dataclasses.asdict(encoder.adapters)} if encoder.adapters else {})


def _build_encoder(config: Mapping[str, Any]) -> Encoder:
    from core_mri.models.adapters import add_adapters
    from core_mri.models.encoder import Encoder

    encoder = Encoder(EncoderConfig(**config["encoder"]))
    if places := config.get("adapters"):
        add_adapters(encoder, AdapterConfig(blocks=tuple(places["blocks"]), width=places["width"]))
    return encoder


def _build_segmenter(encoder: Encoder, config: Mapping[str, Any]) -> Segmenter:
    from core_mri.models.heads import DECODERS
    from core_mri.models.segmenter import Inference, Segmenter

    head = dict(config["head"])
    inference = dict(config.get("inference", {}))
    if scales := inference.get("scales"):
        inference["scales"] = tuple(scales)
    return Segmenter(
        encoder,
        DECODERS[head.pop("decoder", "light")](**head),
        depths=config["depths"],
        labels={int(index): name for index, name in config["labels"].items()},
        image_size=config["image_size"],
        sequences=config.get("sequences", [""]),
        neighbours=config.get("neighbours", 0),
        inference=Inference(**inference),
    )


def _build_generator(config: Mapping[str, Any]) -> Generator:
    from core_mri.models.generator import build_generator
    from core_mri.models.generator_config import GeneratorConfig

    return build_generator(
        GeneratorConfig(**config["generator"]),
        labels={int(index): name for index, name in config["labels"].items()},
        sequences=config["sequences"],
    )


def _build(
    folder: Path, config: Mapping[str, Any]
) -> Encoder | Segmenter | Classifier | PromptableSegmenter | Reconstructor | Generator:
    from core_mri.models.classifier import Classifier
    from core_mri.models.neck import NeckedEncoder
    from core_mri.models.promptable import PromptableSegmenter

    try:
        if config["kind"] == "reconstructor":
            kind, _ = RECONSTRUCTORS[config["network"]]
            return create_reconstructor(load_config(kind, config["sizes"]))
        if config["kind"] == "generator":
            return _build_generator(config)
        if config["kind"] == "promptable" and "global_blocks" in config["encoder"]:
            sizes = config["encoder"]
            return create_sam(SamConfig(**sizes | {"global_blocks": tuple(sizes["global_blocks"])}))
        encoder = _build_encoder(config)
        if config["kind"] == "encoder":
            return encoder
        if config["kind"] == "promptable":
            decoder = config["decoder"]
            necked = NeckedEncoder(encoder, depths=config["depths"], channels=decoder["channels"])
            return PromptableSegmenter(necked, **decoder)
        if config["kind"] == "classifier":
            return Classifier(
                encoder,
                classes=config["classes"],
                level=config["level"],
                image_size=config["image_size"],
                attention=config["attention"],
            )
        if config["kind"] == "segmenter":
            return _build_segmenter(encoder, config)
    except (LookupError, TypeError, ValueError, AttributeError, CoreMRIError) as error:
        raise WeightsError(
            "WEIGHTS-01", f"{folder / CONFIG}: does not describe a model ({error})."
        ) from None
    raise WeightsError("WEIGHTS-01", f"{folder / CONFIG}: unknown kind {config['kind']!r}.")


def read_tensors(folder: Path, expected: str) -> dict[str, Any]:
    """The tensors of a weights folder, whose file has this SHA-256.

    Raises:
        WeightsError: WEIGHTS-01 when the file is missing, damaged or another one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / TENSORS
    if not path.is_file():
        raise WeightsError("WEIGHTS-01", f"{path}: no such file.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError("WEIGHTS-01", f"{path}: truncated or damaged ({error}).") from None
    found = file_sha256(path)
    if found != expected:
        raise WeightsError(
            "WEIGHTS-01",
            f"{path}: SHA-256 {found[:12]}..., {CONFIG} says {expected[:12]}...",
            fix="Copy the folder again from its source.",
        )
    return tensors
