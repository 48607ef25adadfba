"""Generators: label maps to slices of scans that look like those of the training patients.

What they make is synthetic and must be called so. Shapes: N slices, Q sequences, C label classes
with 0 (whatever is not labelled), S side in pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from core_mri.models.generator_config import GeneratorConfig

NUM_TIMES = 1000
"""Noise levels that a diffusion model is trained on."""
_AT_ONCE = 48
"""Slices that are made together."""


class Generator(nn.Module):
    """``labels [N, S, S] -> images [N, Q, S, S] in [0, 1]``.

    Args:
        config: Its sizes.
        labels: Class index (from 1) to name.
        sequences: Names of the channels that it makes, in order; one may be nameless.
    """

    def __init__(
        self, config: GeneratorConfig, *, labels: Mapping[int, str], sequences: Sequence[str]
    ) -> None:
        super().__init__()
        self.config = config
        self.labels = dict(labels)
        self.sequences = tuple(sequences)

    def one_hot(self, labels: Tensor) -> Tensor:
        """Class indices [N, S, S] as float32 [N, C, S, S]."""
        return functional.one_hot(labels, len(self.labels) + 1).movedim(-1, 1).float()

    @abstractmethod
    def generate(self, labels: Tensor, seed: int) -> Tensor:
        """Slices of one scan.

        The same labels, seed and device give the same slices; they share what makes a scan look as
        it does (style, or the noise that a diffusion starts from).

        Args:
            labels: Class indices [N, S, S] of the slices of one scan.
            seed: Determines everything.

        Returns:
            Float32 [N, Q, S, S] in [0, 1].
        """


class SpadeGenerator(Generator):
    """MONAI's SPADE variational autoencoder, and a sharp end at full resolution.

    Park et al., Semantic image synthesis with spatially-adaptive normalization, CVPR 2019
    (arXiv:1903.07291). MONAI's last layers know the labels at half the resolution only; here two
    convolutions follow that see them, and noise for the grain of the image, at full resolution.
    """

    def __init__(
        self, config: GeneratorConfig, *, labels: Mapping[int, str], sequences: Sequence[str]
    ) -> None:
        super().__init__(config, labels=labels, sequences=sequences)
        from monai.networks.nets import SPADENet

        self.body = SPADENet(
            spatial_dims=2,
            in_channels=len(sequences),
            out_channels=config.width,
            label_nc=len(labels) + 1,
            input_shape=(config.image_size, config.image_size),
            channels=config.channels,
            z_dim=config.style,
            spade_intermediate_channels=2 * config.width,
            last_act=None,
        )
        self.end = nn.Sequential(
            nn.Conv2d(config.width + len(labels) + 2, config.width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(config.width, len(sequences), 3, padding=1),
        )

    def styles(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance [N, style] of the style of slices [N, Q, S, S]."""
        mean, log_variance = self.body.encoder(2 * images - 1)
        return mean, log_variance

    def forward(self, labels: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """Slices [N, Q, S, S] of labels [N, S, S], style [N, style], normal noise [N, 1, S, S]."""
        known = self.one_hot(labels)
        features = self.body.decode(known, style)
        return self.end(torch.cat([features, known, noise], 1)).sigmoid()

    @torch.no_grad()
    def generate(self, labels: Tensor, seed: int) -> Tensor:
        """As `Generator.generate`."""
        random = torch.Generator().manual_seed(seed)
        style = torch.randn(1, self.config.style, generator=random).to(labels.device)
        noise = torch.randn(len(labels), 1, *labels.shape[1:], generator=random).to(labels.device)
        parts = [
            self(own, style.expand(len(own), -1), grain)
            for own, grain in zip(labels.split(_AT_ONCE), noise.split(_AT_ONCE), strict=True)
        ]
        return torch.cat(parts)


class DiffusionGenerator(Generator):
    """Diffusion that a ControlNet steers by the label map, trained together.

    Ho et al. (arXiv:2006.11239), Salimans and Ho (v-prediction, arXiv:2202.00512), Song et al.
    (DDIM, arXiv:2010.02502), Zhang et al. (ControlNet, arXiv:2302.05543), in MONAI's networks. What
    is denoised, a code, is the image in [-1, 1] itself.
    """

    def __init__(
        self, config: GeneratorConfig, *, labels: Mapping[int, str], sequences: Sequence[str]
    ) -> None:
        super().__init__(config, labels=labels, sequences=sequences)
        from monai.networks.nets import ControlNet, DiffusionModelUNet

        channels = self._set_up_codes()
        shared = {
            "spatial_dims": 2,
            "in_channels": channels,
            "num_res_blocks": 1,
            "channels": config.channels,
            "attention_levels": [level == config.depth - 1 for level in range(config.depth)],
            "num_head_channels": config.width,
            "norm_num_groups": 8,
        }
        self.denoiser = DiffusionModelUNet(out_channels=channels, **shared)
        self.control = ControlNet(
            conditioning_embedding_in_channels=len(labels) + 1,
            conditioning_embedding_num_channels=self._label_channels,
            **shared,
        )

    def _set_up_codes(self) -> int:
        """Whatever else a space needs; gives the channels of a code."""
        return len(self.sequences)

    @property
    def _label_channels(self) -> tuple[int, ...]:
        """Layers between labels and codes; each but the first halves rows and columns."""
        return (self.config.width,)

    def encode(self, images: Tensor) -> Tensor:
        """Codes of images [N, Q, S, S] in [0, 1]."""
        return 2 * images - 1

    def decode(self, codes: Tensor) -> Tensor:
        """Images [N, Q, S, S] in [0, 1] of codes."""
        return (codes / 2 + 0.5).clamp(0, 1)

    def code_shape(self, size: int) -> tuple[int, int, int]:
        """Channels, rows and columns of the code of an image of `size` pixels."""
        return len(self.sequences), size, size

    def forward(self, labels: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        """V of noisy codes of about unit size at noise levels ``times`` [N]."""
        down, middle = self.control(noisy, times, self.one_hot(labels))
        return self.denoiser(
            noisy,
            times,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        )

    @torch.no_grad()
    def generate(self, labels: Tensor, seed: int) -> Tensor:
        """As `Generator.generate`."""
        from monai.networks.schedulers import DDIMScheduler

        scheduler = DDIMScheduler(NUM_TIMES, **noise_schedule())
        scheduler.set_timesteps(self.config.sampling_steps)
        random = torch.Generator().manual_seed(seed)
        start = torch.randn(1, *self.code_shape(labels.shape[-1]), generator=random)
        parts = []
        for own in labels.split(_AT_ONCE):
            codes = start.expand(len(own), -1, -1, -1).to(labels.device)
            for time in scheduler.timesteps.tolist():
                times = torch.full((len(own),), time, device=labels.device)
                codes, _ = scheduler.step(self(own, codes, times), time, codes)
            parts.append(self.decode(codes))
        return torch.cat(parts)


class LatentDiffusionGenerator(DiffusionGenerator):
    """Diffusion of the latent image of an autoencoder.

    Rombach et al., High-resolution image synthesis with latent diffusion models, CVPR 2022
    (arXiv:2112.10752). The autoencoder is MONAI's, small; its codes are brought to mean 0 and
    standard deviation 1 by channel, which a training measures.
    """

    code_mean: Tensor
    code_std: Tensor

    def _set_up_codes(self) -> int:
        from monai.networks.nets import AutoencoderKL

        levels = self.config.latent_levels + 1
        self.autoencoder = AutoencoderKL(
            spatial_dims=2,
            in_channels=len(self.sequences),
            out_channels=len(self.sequences),
            num_res_blocks=1,
            channels=[self.config.width * min(2**level, 4) for level in range(levels)],
            attention_levels=[False] * levels,
            latent_channels=self.config.latent_channels,
            norm_num_groups=8,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        for name, value in (("code_mean", 0.0), ("code_std", 1.0)):
            self.register_buffer(name, torch.full((1, self.config.latent_channels, 1, 1), value))
        return self.config.latent_channels

    @property
    def _label_channels(self) -> tuple[int, ...]:
        return (self.config.width,) * (self.config.latent_levels + 1)

    def encode(self, images: Tensor) -> Tensor:
        """As `DiffusionGenerator.encode`; the mean of what the encoder says."""
        mean, _ = self.autoencoder.encode(2 * images - 1)
        return (mean - self.code_mean) / self.code_std

    def decode(self, codes: Tensor) -> Tensor:
        """As `DiffusionGenerator.decode`."""
        images = self.autoencoder.decode(codes * self.code_std + self.code_mean)
        return (images / 2 + 0.5).clamp(0, 1)

    def code_shape(self, size: int) -> tuple[int, int, int]:
        """As `DiffusionGenerator.code_shape`."""
        side = size >> self.config.latent_levels
        return self.config.latent_channels, side, side


def noise_schedule() -> dict[str, str]:
    """Arguments of MONAI's schedulers; the same in training and sampling."""
    return {"schedule": "scaled_linear_beta", "prediction_type": "v_prediction"}


def build_generator(
    config: GeneratorConfig, *, labels: Mapping[int, str], sequences: Sequence[str]
) -> SpadeGenerator | DiffusionGenerator:
    """A generator with random weights (seed torch first for reproducible ones)."""
    return _GENERATORS[config.kind, config.space](config, labels=labels, sequences=sequences)


_GENERATORS: dict[tuple[str, str], type[SpadeGenerator] | type[DiffusionGenerator]] = {
    ("spade", "pixel"): SpadeGenerator,
    ("diffusion", "pixel"): DiffusionGenerator,
    ("diffusion", "latent"): LatentDiffusionGenerator,
}
