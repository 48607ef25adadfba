"""SAM's mask decoder with the projections of the image side folded into those of the tokens.

A prompt has about T = 7 tokens and the image thousands of patches (K = 4096 at 1024 pixels), so
whatever is multiplied with every patch decides the time. ``score = (W_q t) . (W_k p)`` is computed
as ``(W_k' W_q t) . p``: 8 heads x 7 tokens = 56 columns a patch instead of 128 channels for keys,
128 for values and so on, and no copies from channels to heads. A bias of the keys shifts all scores
of a token alike, which the softmax does not see. Results differ from the ``segment-anything``
package, whose modules hold the weights, in the order of summation only.

Shapes: N prompts, T tokens, K = h w patches, D channels of both, H heads of C channels, M masks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from core_mri.models.linear import onednn_fits, product


def two_way(
    transformer: Any, patches: Tensor, positions: Tensor, prompts: Tensor
) -> tuple[Tensor, Tensor]:
    """What `transformer` (segment-anything's `TwoWayTransformer`) computes.

    Args:
        transformer: The module with the weights.
        patches: [N, K, D].
        positions: [1, K, D], what is added to patches as keys.
        prompts: [N, T, D], tokens of the prompt and of the answer.

    Returns:
        Tokens [N, T, D] and patches [N, K, D].
    """
    tokens = prompts
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
        else:
            placed = tokens + prompts
            tokens = tokens + layer.self_attn(q=placed, k=placed, v=tokens)
        tokens = layer.norm1(tokens)
        keys = patches + positions
        look = layer.cross_attn_token_to_image
        tokens = layer.norm2(tokens + _look(look, tokens + prompts, keys, patches))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        change = _tell(layer.cross_attn_image_to_token, keys, tokens + prompts, tokens)
        patches = layer.norm4(patches + change)
    look = transformer.final_attn_token_to_image
    answer = _look(look, tokens + prompts, patches + positions, patches)
    return transformer.norm_final_attn(tokens + answer), patches


def upscale(layers: Any, patches: Tensor, kernels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Logits [N, M, 4 h, 4 w]: `layers` (transposed convolutions of stride 2) then `kernels`.

    A transposed convolution whose kernel is as large as its stride is one product a patch.

    Args:
        layers: segment-anything's `output_upscaling`.
        patches: [N, K, D].
        kernels: [N, M, D / 8].
        grid: (h, w).
    """
    first, norm, _, second, _ = layers
    x = _multiply(patches, *_as_linear(first)).unflatten(-1, (4, -1))
    x = functional.gelu(functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
    x = _multiply(x.flatten(1, 2), *_as_linear(second), gelu=True)
    x = _multiply(x.unflatten(-1, (4, -1)).flatten(1, 2), kernels)
    # [N, h, w, a, b, c, d, M]: row 4 y + 2 a + c, column 4 x + 2 b + d.
    x = x.reshape(len(x), *grid, 2, 2, 2, 2, -1).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return x.reshape(len(x), -1, 4 * grid[0], 4 * grid[1])


def _look(attention: Any, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Tokens attend to patches; [N, T, D]."""
    heads = attention.num_heads
    queries = attention.q_proj(tokens).unflatten(-1, (heads, -1))
    queries = queries * queries.shape[-1] ** -0.5
    # [N, H, T, C] x [H, C, D]
    folded = queries.transpose(1, 2) @ attention.k_proj.weight.unflatten(0, (heads, -1))
    weights = _multiply(folded.flatten(1, 2), keys).softmax(-1)  # [N, H T, K]
    seen = (weights @ values).unflatten(1, (heads, -1))  # [N, H, T, D]
    seen = seen @ attention.v_proj.weight.unflatten(0, (heads, -1)).mT
    # The weights of a token add up to 1, so that the bias of the values is added once.
    return attention.out_proj(seen.transpose(1, 2).flatten(2) + attention.v_proj.bias)


def _tell(attention: Any, queries: Tensor, tokens: Tensor, values: Tensor) -> Tensor:
    """Patches attend to tokens; [N, K, D]."""
    heads = attention.num_heads
    keys = attention.k_proj(tokens).unflatten(-1, (heads, -1)).transpose(1, 2)  # [N, H, T, C]
    keys = keys * keys.shape[-1] ** -0.5
    folded = keys @ attention.q_proj.weight.unflatten(0, (heads, -1))
    bias = keys @ attention.q_proj.bias.unflatten(0, (heads, -1))[..., None]
    scores = _multiply(folded.flatten(1, 2), queries).unflatten(1, (heads, -1)) + bias
    # [N, H, T, K]: over rows the softmax is far faster than over seven neighboring numbers.
    weights = scores.softmax(2).flatten(1, 2).mT.contiguous()
    told = attention.v_proj(values).unflatten(-1, (heads, -1)).transpose(1, 2)
    out = told @ attention.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)
    return _multiply(weights, out.flatten(1, 2).mT, attention.out_proj.bias)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """``x @ weight.T + bias``: [N, R, K], [N, M, K] or [M, K], [M] -> [N, R, M]."""
    if len(x) == 1 and onednn_fits(x, weight):
        return product(x[0], weight.flatten(0, -2), bias, "gelu" if gelu else "none")[None]
    out = x @ weight.mT if bias is None else x @ weight.mT + bias
    return functional.gelu(out) if gelu else out


def _as_linear(convolution: torch.nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Weight [4 out, in] and bias [4 out] of a transposed convolution of side and stride 2."""
    weight, bias = convolution.weight, convolution.bias
    assert bias is not None
    return weight.permute(2, 3, 1, 0).flatten(0, 2), bias.repeat(4)
