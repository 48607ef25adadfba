"""Gold features from MRI-CORE's own code, for tests that must not need it.

    python tests/references/make_mri_core_gold.py SOURCE tests/references/mri_core_gold.npz

SOURCE is a checkout of mazurowski-lab/mri_foundation; the committed file was made with commit
0f4f452614013873f8bb58a1fd613dbe36b58aba (2025-09-16), torch 2.15.0, einops 0.8, on the CPU. The
published checkpoint cannot be had without Google Drive, so its layout is filled with seeded numbers
(`checkpoint`, `sam_checkpoint`), which the tests call too, in a small size. The code is run as it
is; only `torch.load` is told to ignore the hard-coded ``cuda:0``.

Features are those that enter the neck, which the published code leaves random.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

WIDTH, DEPTH, HEADS, PATCH, SIZE = 128, 8, 2, 16, 256
GLOBAL_BLOCKS = (1, 3, 5, 7)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def checkpoint(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """MRI-CORE's layout: a DINOv2 teacher of ViT/16, blocks in four chunks, no LayerScale."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 197, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        block = f"blocks.{i // 2}.{i}"
        for name, out, inner in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            shapes[f"{block}.{name}.weight"] = (out, inner)
            shapes[f"{block}.{name}.bias"] = (out,)
        for name in ("norm1", "norm2"):
            shapes[f"{block}.{name}.weight"] = shapes[f"{block}.{name}.bias"] = (WIDTH,)
    teacher = {f"backbone.{name}": shape for name, shape in shapes.items()}
    teacher |= {"dino_head.mlp.0.weight": (32, WIDTH), "dino_head.last_layer.weight_g": (8, 1)}
    return {"teacher": _fill(teacher, seed)}


def sam_checkpoint(seed: int = 1) -> dict[str, torch.Tensor]:
    """SAM's layout for images of SIZE, from the shapes of the segment-anything package."""
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    grid = SIZE // PATCH
    sam = Sam(
        ImageEncoderViT(
            img_size=SIZE,
            embed_dim=WIDTH,
            depth=DEPTH,
            num_heads=HEADS,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=GLOBAL_BLOCKS,
        ),
        PromptEncoder(256, (grid, grid), (SIZE, SIZE), 16),
        MaskDecoder(
            transformer_dim=256,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        ),
    )
    return _fill({name: tuple(t.shape) for name, t in sam.state_dict().items()}, seed)


def images(seed: int = 2) -> torch.Tensor:
    """A gray image [1, 1, SIZE, SIZE] in [0, 1]."""
    return torch.from_numpy(np.random.default_rng(seed).random((1, 1, SIZE, SIZE), np.float32))


def _fill(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    tensors = {}
    for name in sorted(shapes):
        fan = int(np.prod(shapes[name][1:])) if name.endswith("weight") else 25
        numbers = rng.standard_normal(shapes[name], np.float32) / max(fan, 1) ** 0.5
        tensors[name] = torch.from_numpy(numbers)
    return tensors


def main() -> None:
    source, target = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    sys.path.insert(0, str(source))
    sys.argv = sys.argv[:1]
    import cfg
    from models.sam.build_sam import _build_sam

    args = cfg.parse_args()
    args.if_encoder_adapter = args.if_mask_decoder_adapter = False
    load = torch.load
    torch.load = lambda file, **_: load(file, map_location="cpu")
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    gold: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("pretrained_weights").mkdir()
        torch.save(checkpoint(), "mri_core.pth")
        torch.save(sam_checkpoint(), "pretrained_weights/sam_vit_b_01ec64.pth")
        for name, pretrained, normalized in (
            ("readme", False, False),
            ("dataset", False, True),
            ("from_sam", True, True),
        ):
            with contextlib.redirect_stdout(io.StringIO()):
                model = _build_sam(
                    args,
                    encoder_embed_dim=WIDTH,
                    encoder_depth=DEPTH,
                    encoder_num_heads=HEADS,
                    encoder_global_attn_indexes=list(GLOBAL_BLOCKS),
                    checkpoint="mri_core.pth",
                    num_classes=3,
                    image_size=SIZE,
                    pretrained_sam=pretrained,
                )
            model.image_encoder.neck = torch.nn.Identity()
            x = images().expand(-1, 3, -1, -1)
            with torch.no_grad():
                tokens = model.image_encoder((x - mean) / std if normalized else x)
            gold[name] = tokens.permute(0, 2, 3, 1)[0, ::3, ::3].numpy()
            gold[f"{name}_table"] = np.float64(model.image_encoder.pos_embed.detach().abs().sum())
    np.savez_compressed(target, **gold)


if __name__ == "__main__":
    main()
