"""From a configuration to the network that is trained, and to the encoder inside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

import core_mri
from core_mri.errors import ConfigError, WeightsError
from core_mri.models.reconstruction import Reconstructor
from core_mri.models.registry import CoilMode, UnetConfig, UnrolledConfig, VarNetConfig
from core_mri.models.segmenter import spread_depths
from downstream.adapt import adapt, encoder_of, random_twin
from downstream.recipe import Recipe
from downstream.reconstruction.training.config import InnerEncoder, Network

if TYPE_CHECKING:
    from core_mri.models.encoder import Encoder


def build_network(
    network: Network,
    settings: InnerEncoder,
    encoder: Encoder | None,
    seed: int,
    coils: CoilMode = "multi",
) -> Reconstructor:
    """A network before its first step; torch's random state is kept.

    Args:
        network: What it is.
        settings: What of the encoder moves, and which of its depths are read.
        encoder: Copied, never changed; None leaves it out.
        seed: Of what starts at random.
        coils: What k-space it is trained on.

    Raises:
        ConfigError: CONFIG-05 when ``network.start`` has other sizes.
        WeightsError: When ``network.start`` cannot be loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = _build(network, settings, encoder, coils)
    if network.start:
        start = core_mri.load_model(network.start, device="cpu")
        found = getattr(start, "config", None)
        if type(start) is not type(built) or found != built.config:
            raise ConfigError(
                "CONFIG-05",
                f"network.start {network.start} holds another network ({found}) than was asked for "
                f"({built.config}).",
            )
        built.load_state_dict(start.state_dict())
    context = getattr(built, "context", None)
    if context is not None:
        rank = settings.lora_rank
        recipe = replace(Recipe(), lora_rank=rank, lora_alpha=float(rank))
        context.encoder = adapt(context.encoder, settings.adaptation, recipe, seed)
    return built


def load_encoder(settings: InnerEncoder, seed: int) -> Encoder | None:
    """The encoder that goes inside, on the CPU; its random twin where that was asked for.

    Raises:
        WeightsError: What `core_mri.load_model` raises; WEIGHTS-02 for a model without a plain ViT,
            with adapters, or of fewer blocks than levels.
    """
    if not settings.weights:
        return None
    encoder = encoder_of(core_mri.load_model(settings.weights, device="cpu"))
    if encoder.adapters is not None:
        raise WeightsError(
            "WEIGHTS-02",
            f"{settings.weights}: an encoder with adapters cannot go inside a network.",
            fix="Give the weights it was adapted from, or an encoder adapted by lora or full.",
        )
    if settings.num_levels > encoder.depth:
        raise WeightsError(
            "WEIGHTS-02",
            f"encoder.num_levels {settings.num_levels} is more than the {encoder.depth} blocks of "
            f"{settings.weights}.",
        )
    return random_twin(encoder, seed) if settings.random else encoder


def _build(
    network: Network, settings: InnerEncoder, encoder: Encoder | None, coils: CoilMode
) -> Reconstructor:
    if network.name == "unet":
        from core_mri.models.unet import Unet

        return Unet(UnetConfig(channels=network.channels, pools=network.pools, coils=coils))
    if network.name == "varnet":
        from core_mri.models.varnet import VarNet

        return VarNet(
            VarNetConfig(
                cascades=network.steps,
                channels=network.channels,
                pools=network.pools,
                map_channels=max(network.channels // 2, 1),
                map_pools=network.pools,
                coils=coils,
            )
        )
    from core_mri.models.unrolled import Unrolled

    config = UnrolledConfig(
        num_steps=network.steps,
        steps_per_denoiser=network.steps_per_denoiser,
        denoiser=network.denoiser,
        channels=network.channels,
        num_pools=network.pools,
        num_blocks=network.num_blocks,
        start=network.warm_start,
        data_steps=network.data_steps,
        readout_coils=network.readout_coils,
        coils=coils,
    )
    if encoder is None:
        return Unrolled(config)
    depths = spread_depths(encoder.depth, settings.num_levels)
    built = Unrolled(replace(config, encoder=encoder.config, encoder_depths=depths))
    assert built.context is not None
    built.context.encoder.load_state_dict(encoder.state_dict())
    return built
