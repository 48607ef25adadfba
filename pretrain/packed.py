"""One pass of the encoder over crops of several resolutions.

Norms and linear layers run once on the tokens of all crops, attention once for each resolution, and
stochastic depth computes nothing of what it drops (both as in DINOv2, arXiv 2304.07193). The last
block goes on only with the tokens whose output is asked for: the others cannot change it.

Shapes: B crops of a group, N tokens of a crop (class token, registers, h * w patches), T tokens of
all groups, W wanted tokens of all groups, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional

from core_mri.models.encoder import Encoder
from pretrain.linear import linear
from pretrain.sharding import within

Shapes = list[tuple[int, int]]
"""(B, N) of each group."""
Tables = list[Tensor | None]
"""`Encoder.rotary_table` of each group."""


class Crops(NamedTuple):
    """Crops of one resolution."""

    images: Tensor
    """[B, 1, S, S] in [0, 1]."""
    mask: Tensor | None = None
    """Bool [B, h, w]: patches that the encoder does not see."""
    wanted: Tensor | None = None
    """[P] positions in B * h * w of the patches whose output is needed, ascending, on the
    processor; without it the class tokens alone are."""
    draws: Tensor | None = None
    """[2 * depth, V, U, B / V / U] uniform numbers on the processor, for stochastic depth: of the
    crops of V views of U units, each unit loses the same number. Without it the crops are one unit
    and the numbers come from torch's global generator."""


class Encoded(NamedTuple):
    """Output of the encoder for one group of crops, after the last norm."""

    cls: Tensor
    """[B, D]."""
    patches: Tensor
    """[P, D], in the order of `Crops.wanted`."""


class Branch(NamedTuple):
    """What a residual branch, attention or MLP, is computed for; tensors on the device."""

    rows: Tensor
    """Tokens it is computed for, among those that come in."""
    shapes: Shapes
    """(kept crops, N) of each group, for attention."""
    chosen: Tensor | None
    """Which results of attention go on; None for all."""
    targets: Tensor
    """Where results are added, among the tokens that go out."""
    sizes: list[int]
    """Results of each group."""
    scales: list[float]
    """B / kept crops of each group: keeps the expectation."""


def encode_packed(
    encoder: Encoder, groups: Sequence[Crops], *, drop_path: float = 0.0, compiled: bool = False
) -> list[Encoded]:
    """Class tokens and wanted patches of groups of crops.

    Args:
        encoder: A plain ViT.
        groups: One for each resolution.
        drop_path: Share of the crops of a group that each residual branch leaves out; what is
            computed is scaled up.
        compiled: Compile the blocks but the last one, whose number of tokens changes.
    """
    embedded = [encoder.embed(group.images, group.mask) for group in groups]
    shapes = [(tokens.shape[0], tokens.shape[1]) for tokens, _ in embedded]
    tables = [encoder.rotary_table(grid) for _, grid in embedded]
    x = torch.cat([tokens.flatten(0, 1) for tokens, _ in embedded])
    wanted = _wanted_rows(groups, shapes, encoder.vit.num_prefix_tokens)
    *early, last = encoder.vit.blocks
    kept = _draw_kept(groups, 2 * len(encoder.vit.blocks), drop_path)
    branches = _draw_branches(shapes, [part[:-2] for part in kept], x.device)
    run_block = _compiled_block() if compiled else transform_block
    for depth, block in enumerate(early):
        x = _through(
            run_block, block, x, shapes, tables, branches[2 * depth], branches[2 * depth + 1]
        )
    x = _through(
        transform_block, last, x, shapes, tables,
        *_last_branches(shapes, [part[-2:] for part in kept], wanted, x.device),
        wanted=wanted.to(x.device, non_blocking=True),
    )  # fmt: skip
    sizes = [
        size
        for group in groups
        for size in (len(group.images), 0 if group.wanted is None else len(group.wanted))
    ]
    parts = encoder.vit.norm(x).split(sizes)
    return [Encoded(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]


def transform_block(
    block: Any,
    x: Tensor,
    shapes: Shapes,
    tables: Tables,
    first: Branch | None,
    second: Branch | None,
    wanted: Tensor | None = None,
) -> Tensor:
    """A block of timm's ViT: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    Args:
        block: Its parameters.
        x: [T, D], changed in place unless compiled.
        shapes: Of the groups.
        tables: Rotary positions of the groups.
        first: What attention is computed for; None for all.
        second: What the MLP is computed for; None for all.
        wanted: [W] rows that go on after attention; None for all.

    Returns:
        [T, D], or [W, D].
    """
    y = _attention(block, _take(x, first), shapes if first is None else first.shapes, tables)
    if wanted is not None:
        y = y.index_select(0, wanted if first is None or first.chosen is None else first.chosen)
        x = x.index_select(0, wanted)
    x = _add(x, _scaled_linear(y, block.attn.proj, _gamma(block, 1)), first)
    y = block.norm2(_take(x, second))
    y = functional.gelu(linear(y, block.mlp.fc1.weight, block.mlp.fc1.bias))
    return _add(x, _scaled_linear(y, block.mlp.fc2, _gamma(block, 2)), second)


def _through(
    run_block: Callable[..., Tensor],
    block: Any,
    x: Tensor,
    shapes: Shapes,
    tables: Tables,
    first: Branch | None,
    second: Branch | None,
    **wanted: Tensor,
) -> Tensor:
    """A block, maybe a sharded one, which gets its input as a view that cannot be changed."""
    copies = isinstance(block, FSDPModule) and first is not None

    def body(x: Tensor) -> Tensor:
        x = x.clone() if copies else x
        return run_block(block, x, shapes, tables, first, second, **wanted)

    return within(block, body, x)


@cache
def _compiled_block() -> Callable[..., Tensor]:
    return torch.compile(transform_block, dynamic=False)


def _attention(block: Any, x: Tensor, shapes: Shapes, tables: Tables) -> Tensor:
    """Self-attention within crops before its output projection: [T, D]."""
    attention = block.attn
    mixed = linear(block.norm1(x), attention.qkv.weight, _qkv_bias(attention))  # [T, 3 * D]
    parts = mixed.split([crops * tokens for crops, tokens in shapes])
    results = []
    for (crops, tokens), part, table in zip(shapes, parts, tables, strict=True):
        heads = part.view(crops, tokens, 3, attention.num_heads, attention.head_dim)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [B, heads, N, D / heads]
        if table is not None:
            q, k = _rotated(q, table), _rotated(k, table)
        results.append(_mix(q, k, v).transpose(1, 2).reshape(crops * tokens, -1))
    return torch.cat(results)


def _mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.device.type != "cpu":
        return functional.scaled_dot_product_attention(q, k, v)
    # torch's attention for processors is slow on short sequences, tenfold backward in bfloat16.
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT, -1) @ v


def _qkv_bias(attention: Any) -> Tensor | None:
    """Of timm's two attentions; that of DINOv3 has no bias of keys."""
    if attention.qkv.bias is None and attention.q_bias is not None:
        return torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    bias: Tensor | None = attention.qkv.bias
    return bias


def _rotated(x: Tensor, table: Tensor) -> Tensor:
    """Queries or keys [B, heads, N, D / heads] with the patches, the last tokens, rotated."""
    from timm.layers import apply_rot_embed_cat

    first = x.shape[2] - len(table)
    turned = apply_rot_embed_cat(x[:, :, first:], table, half=True)
    return torch.cat([x[:, :, :first], turned], 2).type_as(x)


def _gamma(block: Any, branch: int) -> Tensor | None:
    """LayerScale of a residual branch, 1 or 2, in timm's two kinds of block."""
    gamma: Tensor | None = (
        getattr(block, f"gamma_{branch}")
        if hasattr(block, "gamma_1")
        else getattr(getattr(block, f"ls{branch}"), "gamma", None)
    )
    return gamma


def _scaled_linear(x: Tensor, layer: Any, gamma: Tensor | None) -> Tensor:
    """``gamma * layer(x)``: LayerScale multiplies the few weights instead of the many tokens."""
    if gamma is None:
        return linear(x, layer.weight, layer.bias)
    return linear(x, gamma[:, None] * layer.weight, gamma * layer.bias)


def _take(x: Tensor, branch: Branch | None) -> Tensor:
    return x if branch is None else x.index_select(0, branch.rows)


def _add(x: Tensor, y: Tensor, branch: Branch | None) -> Tensor:
    if branch is None:
        return x + y
    if torch.compiler.is_compiling():
        x = x.clone()  # the compiled backward pass may start from `x` as it came in
    groups = zip(
        branch.targets.split(branch.sizes), y.split(branch.sizes), branch.scales, strict=True
    )
    for rows, part, scale in groups:
        x = x.index_add_(0, rows, part.to(x.dtype), alpha=scale)
    return x


def _wanted_rows(groups: Sequence[Crops], shapes: Shapes, num_prefix: int) -> Tensor:
    """[W] rows of class tokens and wanted patches, group by group, on the processor."""
    rows, begin = [], 0
    for group, (crops, tokens) in zip(groups, shapes, strict=True):
        rows.append(begin + tokens * torch.arange(crops))
        if group.wanted is not None:
            crop = group.wanted // (tokens - num_prefix)
            rows.append(begin + group.wanted + (crop + 1) * num_prefix)
        begin += crops * tokens
    return torch.cat(rows)


def _draw_kept(groups: Sequence[Crops], number: int, rate: float) -> list[Tensor]:
    """For each group [number, kept crops]: which crops remain, ascending; all without a rate."""
    kept = []
    for group in groups:
        crops = len(group.images)
        if rate == 0:
            kept.append(torch.arange(crops).expand(number, -1))
            continue
        draws = torch.rand(number, 1, 1, crops) if group.draws is None else group.draws
        _, views, units, size = draws.shape
        remain = max(round(views * size * (1 - rate)), 1)
        order = draws.transpose(1, 2).flatten(2).argsort(2)[..., :remain]  # [number, U, remain]
        view, place = order // size, order % size
        rows = (view * units + torch.arange(units)[:, None]) * size + place
        kept.append(rows.flatten(1).sort(1).values)
    return kept


def _draw_branches(shapes: Shapes, kept: list[Tensor], device: torch.device) -> list[Branch | None]:
    """Branches that leave out whole crops; their rows go to the device in one transfer."""
    number = len(kept[0])
    if all(part.shape[1] == crops for part, (crops, _) in zip(kept, shapes, strict=True)):
        return [None] * number
    rows = _token_rows(kept, shapes).to(device, non_blocking=True)
    left = [(part.shape[1], tokens) for part, (_, tokens) in zip(kept, shapes, strict=True)]
    scales = [crops / few for (crops, _), (few, _) in zip(shapes, left, strict=True)]
    sizes = [crops * tokens for crops, tokens in left]
    return [Branch(row, left, None, row, sizes, scales) for row in rows]


def _last_branches(
    shapes: Shapes, kept: list[Tensor], wanted: Tensor, device: torch.device
) -> tuple[Branch | None, Branch | None]:
    """Branches of the last block, of which only the wanted tokens go on."""
    whole = _draw_branches(shapes, kept, torch.device("cpu"))
    ends = torch.tensor([crops * tokens for crops, tokens in shapes]).cumsum(0)
    few = [_among(branch, wanted, ends) for branch in whole if branch is not None]
    if not few:
        return None, None
    first, second = few
    # The MLP comes after the choice: its rows are among the wanted ones.
    return _to(first, device), _to(second._replace(rows=second.targets, chosen=None), device)


def _among(branch: Branch, wanted: Tensor, ends: Tensor) -> Branch:
    """A branch of whole crops whose results go on only where they are among `wanted`."""
    place = torch.full((int(ends[-1]),), -1)
    place[branch.rows] = torch.arange(len(branch.rows))
    targets = (place[wanted] >= 0).nonzero()[:, 0]
    group = torch.bucketize(wanted[targets], ends, right=True)
    return branch._replace(
        chosen=place[wanted[targets]],
        targets=targets,
        sizes=torch.bincount(group, minlength=len(ends)).tolist(),
    )


def _to(branch: Branch, device: torch.device) -> Branch:
    chosen = branch.chosen
    return branch._replace(
        rows=branch.rows.to(device, non_blocking=True),
        chosen=None if chosen is None else chosen.to(device, non_blocking=True),
        targets=branch.targets.to(device, non_blocking=True),
    )


def _token_rows(kept: list[Tensor], shapes: Shapes) -> Tensor:
    """[number, R] tokens of the kept crops of all groups."""
    rows, begin = [], 0
    for part, (crops, tokens) in zip(kept, shapes, strict=True):
        rows.append((begin + part[..., None] * tokens + torch.arange(tokens)).flatten(1))
        begin += crops * tokens
    return torch.cat(rows, 1)
