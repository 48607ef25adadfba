"""SAM's image encoder: a ViT with windowed attention and decomposed relative positions.

Kirillov et al., "Segment Anything", arXiv 2304.02643; relative positions from Li et al., "MViTv2",
arXiv 2112.01526. Tensors have the names of the published checkpoints (``image_encoder.*``), with a
patch embedding of one channel that holds SAM's mean and standard deviation too.

Shapes: B images, H and W pixels, h = H / 16 and w = W / 16 the grid, D the width of a token, C the
width of a head, n windows, s x t the grid of a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from core_mri.errors import ConfigError
from core_mri.models.encoder import Features, check_depths, check_images, check_range
from core_mri.models.linear import Linear, onednn_fits, product
from core_mri.models.neck import sam_neck
from core_mri.models.registry import SamConfig

ROWS = 256
"""Queries whose scores are held at a time: with 4096 keys, 4 MB, which stay in the cache."""


class SamEncoder(nn.Module):
    """``images -> Features``, and through the neck ``images -> embedding`` for a mask decoder.

    SAM has no class token: ``Features.cls`` is the mean of the patch tokens. There is no last norm
    either; patch tokens are those the neck would see.

    Args:
        config: Sizes.
    """

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        width, grid = config.embed_dim, config.image_size // config.patch_size
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(1, width, config.patch_size, stride=config.patch_size)}
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(_Block(config, index) for index in range(config.depth))
        if config.out_channels:
            self.neck = sam_neck(width, config.out_channels)

    @property
    def embed_dim(self) -> int:
        """Width of a token."""
        return self.config.embed_dim

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch_size

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.config.depth

    def forward(self, images: Tensor) -> Features:
        """Encode images [B, 1 or 3, H, W] in [0, 1]; H and W are multiples of the patch size.

        Raises:
            ConfigError: CONFIG-05 when a side is no multiple of the patch size.
            DataError: DATA-03 when there are neither 1 nor 3 channels.
        """
        tokens = self._embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return Features(tokens.mean((1, 2)), tokens)

    def intermediates(self, images: Tensor, depths: Sequence[int]) -> list[Tensor]:
        """Patch tokens [B, h, w, D] after each block of `depths` (0-based, or negative).

        Raises:
            ConfigError: CONFIG-05 when a depth does not exist.
        """
        wanted = check_depths(depths, self.depth)
        tokens = self._embed(images)
        kept: dict[int, Tensor] = {}
        for depth, block in enumerate(self.blocks):
            tokens = block(tokens)
            if depth in wanted:
                kept[depth] = tokens
        return [kept[depth] for depth in wanted]

    def embedding(self, images: Tensor) -> Tensor:
        """What a mask decoder looks at, [B, out_channels, h, w].

        Raises:
            ConfigError: CONFIG-05 when the encoder has no neck; else as :meth:`forward`.
        """
        if not self.config.out_channels:
            raise ConfigError("CONFIG-05", "this encoder has no neck (out_channels is 0).")
        return self.neck(self(images).patches.permute(0, 3, 1, 2))

    def _embed(self, images: Tensor) -> Tensor:
        """Patch tokens with positions, [B, h, w, D]."""
        from timm.layers import resample_abs_pos_embed_nhwc

        images = check_images(images, self.patch_size)
        if not self.training:
            check_range(images)
        tokens = self.patch_embed["proj"](images).permute(0, 2, 3, 1)
        return tokens + resample_abs_pos_embed_nhwc(self.pos_embed, list(tokens.shape[1:3]))


class _Block(nn.Module):
    def __init__(self, config: SamConfig, index: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.normalize_padding = config.normalize_padding
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(config, 0 if index in config.global_blocks else config.window_size)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width)

    def forward(self, tokens: Tensor) -> Tensor:
        bias = self.norm1.bias
        filling = bias if self.normalize_padding else torch.zeros_like(bias)
        tokens = tokens + self.attn(self.norm1(tokens), filling)
        return tokens + self.mlp(self.norm2(tokens))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin1 = Linear(width, 4 * width)
        self.lin2 = Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lin2(self.lin1.gelu(tokens))


class _Attention(nn.Module):
    """Multi-head attention inside windows, or over the whole grid when `window` is 0."""

    def __init__(self, config: SamConfig, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = config.num_heads, window
        self.qkv = Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = Linear(config.embed_dim, config.embed_dim)
        if config.relative_positions:
            side = window or config.image_size // config.patch_size
            shape = (2 * side - 1, config.embed_dim // config.num_heads)
            self.rel_pos_h: Tensor | None = nn.Parameter(torch.zeros(shape))
            self.rel_pos_w: Tensor | None = nn.Parameter(torch.zeros(shape))
        else:
            self.rel_pos_h = self.rel_pos_w = None

    def forward(self, tokens: Tensor, filling: Tensor) -> Tensor:
        """Attend; [B, h, w, D] -> [B, h, w, D], `filling` [D] where windows leave the grid."""
        batch, height, width, _ = tokens.shape
        s, t = (self.window, self.window) if self.window else (height, width)
        qkv = self.qkv(tokens)
        down, right = -height % s, -width % t
        if down or right:
            # Keys of the filling take part in the attention, so they are kept, but all are one
            # token, multiplied once.
            filling = self.qkv(filling)
            qkv = functional.pad(qkv - filling, (0, 0, 0, right, 0, down)) + filling
        rows, columns = (height + down) // s, (width + right) // t
        # [B, rows, s, columns, t, 3, heads, C] -> [3, n, heads, s * t, C]
        windows = qkv.view(batch, rows, s, columns, t, 3, self.num_heads, -1)
        q, k, v = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(
            3, batch * rows * columns, self.num_heads, s * t, -1
        )
        out = _attend(q, k, v, self._relative(q, s, t), t)
        # [n, heads, s * t, C] -> [B, rows * s, columns * t, D]
        out = out.reshape(batch, rows, columns, self.num_heads, s, t, -1)
        out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height + down, width + right, -1)
        return self.proj(out[:, :height, :width])

    def _relative(self, q: Tensor, s: int, t: int) -> tuple[Tensor, Tensor] | None:
        """What a query adds to the scores of each row and of each column of keys.

        ``score(q, k) = q.k / sqrt(C) + q.Rh[y_q - y_k] + q.Rw[x_q - x_k]`` (MViTv2, eq. 4).

        Returns:
            [n, heads, s, t, s] and [n, heads, s, t, t], or None without relative positions.
        """
        if self.rel_pos_h is None or self.rel_pos_w is None:
            return None
        grid = q.unflatten(2, (s, t))
        by_row = torch.einsum("nhyxc,ykc->nhyxk", grid, _distances(self.rel_pos_h, s))
        by_column = torch.einsum("nhyxc,xkc->nhyxk", grid, _distances(self.rel_pos_w, t))
        return by_row, by_column


def _distances(table: Tensor, side: int) -> Tensor:
    """Entry [q, k] is the row of `table` for distance ``q - k``; [side, side, C].

    A table of another grid is interpolated linearly, as segment-anything does.
    """
    if len(table) != 2 * side - 1:
        table = functional.interpolate(table.T[None], 2 * side - 1, mode="linear")[0].T
    index = torch.arange(side, device=table.device)
    return table[index[:, None] - index + side - 1]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, relative: tuple[Tensor, Tensor] | None, t: int
) -> Tensor:
    """Attention of [n, heads, s * t, C] with the additive terms of `_Attention._relative`."""
    if onednn_fits(q, k, v, *(relative or ())):
        return _attend_in_cache(q, k, v, relative, t)
    bias = None
    if relative is not None:
        by_row, by_column = relative
        bias = (by_row[..., :, None] + by_column[..., None, :]).flatten(4).flatten(2, 3)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _attend_in_cache(
    q: Tensor, k: Tensor, v: Tensor, relative: tuple[Tensor, Tensor] | None, t: int
) -> Tensor:
    """The same, a few queries of one head at a time, so that scores never leave the cache."""
    windows, heads, count, width = q.shape
    q = q * width**-0.5
    transposed = v.transpose(2, 3).contiguous()
    out = torch.empty_like(q)
    step = max(1, ROWS // t)  # rows of the grid
    for window in range(windows):
        for head in range(heads):
            for row in range(0, count // t, step):
                chunk = slice(row * t, (row + step) * t)
                scores = product(q[window, head, chunk], k[window, head])
                if relative is not None:
                    by_row, by_column = (each[window, head, row : row + step] for each in relative)
                    grid = scores.view(-1, t, count // t, t)
                    grid += by_row[..., :, None]
                    grid += by_column[..., None, :]
                torch.softmax(scores, -1, out=scores)
                out[window, head, chunk] = product(scores, transposed[window, head])
    return out
