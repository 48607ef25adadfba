"""What MAE and I-JEPA share: an encoder that sees some patches only, and a small transformer.

Shapes: B images, h x w patches, N = h * w, n patches that are seen, D width of the encoder, P width
of the small transformer, R prefix tokens (class token and registers).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from core_mri.models.encoder import Encoder
from core_mri.training.sharding import whole


def encode_visible(
    encoder: Encoder, images: Tensor, kept: Tensor, valid: Tensor | None = None
) -> Tensor:
    """Encode some patches of each image alone; the others are dropped, not replaced.

    Args:
        encoder: Any.
        images: [B, 1, H, W].
        kept: Int64 [B, n], positions in N of the patches that are seen.
        valid: Bool [B, n]; False is padding, which no token attends to. All count without it.

    Returns:
        [B, R + n, D] after the last norm; the output at padding is without meaning.
    """
    tokens, grid = encoder.embed(images, None)
    num_prefix = encoder.vit.num_prefix_tokens
    tokens = torch.cat([tokens[:, :num_prefix], take(tokens[:, num_prefix:], kept)], 1)
    attended = None if valid is None else _attended(valid, num_prefix)
    table = encoder.rotary_table(grid)
    rotary = {} if table is None else {"rope": table[kept][:, None]}  # [B, 1, n, 2 D / heads]
    for block in encoder.vit.blocks:
        tokens = block(tokens, attn_mask=attended, **rotary)
    normed: Tensor = encoder.vit.norm(tokens)
    return normed


class SmallTransformer(nn.Module):
    """Transformer on tokens of an encoder and mask tokens, with fixed sine-cosine positions.

    The decoder of MAE and the predictor of I-JEPA.

    Args:
        in_dim: D.
        out_dim: Width of what comes out.
        dim: P.
        depth: Blocks.
        heads: Attention heads.
    """

    def __init__(self, in_dim: int, out_dim: int, *, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, out_dim)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Tensor,
        places: Tensor,
        wanted: Tensor,
        grid: tuple[int, int],
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Predict what belongs to places from tokens at other places.

        Args:
            tokens: [B, R + n, D]; the last n have a place.
            places: Int64 [B, n] in N.
            wanted: Int64 [B, m] in N.
            grid: (h, w).
            valid: Bool [B, n + m]; False is padding. All count without it.

        Returns:
            [B, m, out_dim].
        """
        positions = sine_cosine(grid, self.mask_token.shape[-1], tokens.device)
        num_prefix = tokens.shape[1] - places.shape[1]
        embedded = self.embed(tokens)
        prefix, seen = embedded[:, :num_prefix], embedded[:, num_prefix:] + positions[places]
        asked = (self.mask_token + positions[wanted]).to(seen.dtype)
        row = torch.cat([prefix, seen, asked], 1)
        attended = None if valid is None else _attended(valid, num_prefix)
        for block in self.blocks:
            row = block(row, attn_mask=attended)
        predicted: Tensor = self.project(self.norm(row[:, -wanted.shape[1] :]))
        return predicted


def sine_cosine(grid: tuple[int, int], dim: int, device: torch.device) -> Tensor:
    """Fixed positions [N, dim]: sines and cosines of row and column (as MAE and MoCo v3)."""
    from timm.layers import build_sincos2d_pos_embed

    table: Tensor = build_sincos2d_pos_embed(list(grid), dim, device=device)
    return table


def take(tokens: Tensor, places: Tensor) -> Tensor:
    """Rows [B, n, D] of tokens [B, N, D] at places [B, n]."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def positions_of(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Where masks are True, padded to the longest.

    Args:
        masks: Bool [B, h, w], on the processor.

    Returns:
        Int64 [B, n] positions in h * w, ascending, padding 0, and bool [B, n], False at padding.
    """
    flat = masks.flatten(1)
    counts = flat.sum(1)
    valid = torch.arange(int(counts.max())) < counts[:, None]
    places = torch.zeros(valid.shape, dtype=torch.int64)
    places[valid] = flat.nonzero()[:, 1]
    return places, valid


def calm(encoder: Encoder) -> Encoder:
    """A whole copy without stochastic depth and gradients, in evaluation mode."""
    copy = Encoder(replace(encoder.config, drop_path=0.0))
    copy.load_state_dict({name: whole(value) for name, value in encoder.state_dict().items()})
    return copy.to(next(encoder.parameters()).device).requires_grad_(False).eval()


def _attended(valid: Tensor, num_prefix: int) -> Tensor:
    """Bool [B, 1, 1, R + n]: the keys that all tokens attend to."""
    prefix = valid.new_ones(len(valid), num_prefix)
    return torch.cat([prefix, valid], 1)[:, None, None]
