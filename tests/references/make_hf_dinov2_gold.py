"""Gold tokens from `transformers`' DINOv2, for tests that must not need it.

    python tests/references/make_hf_dinov2_gold.py tests/references/hf_dinov2_gold.npz

Run with transformers (version in the file, key `version`) and torch 2.15.0 on the CPU. Weights are
seeded numbers in the names and shapes of the released models (`checkpoint`, which the tests call
too), in a small size; RAD-DINO is of the plain kind.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import save_file

WIDTH, DEPTH, HEADS, PATCH, SIZE, REGISTERS = 128, 2, 2, 14, 56, 4
GATED = 2 * (((int(WIDTH * 4 * 2 / 3) + 7) // 8) * 8)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def checkpoint(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """``plain``, ``registers`` or ``swiglu``."""
    count = (SIZE // PATCH) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.position_embeddings": (1, count, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    if name == "registers":
        shapes["embeddings.register_tokens"] = (1, REGISTERS, WIDTH)
    mlp = [("fc1", 4 * WIDTH, WIDTH), ("fc2", WIDTH, 4 * WIDTH)]
    if name == "swiglu":
        mlp = [("weights_in", GATED, WIDTH), ("weights_out", WIDTH, GATED // 2)]
    for i in range(DEPTH):
        layer = f"encoder.layer.{i}"
        parts = [
            (f"attention.attention.{part}", WIDTH, WIDTH) for part in ("query", "key", "value")
        ]
        parts += [("attention.output.dense", WIDTH, WIDTH)]
        for part, out, inner in parts + [(f"mlp.{part}", o, k) for part, o, k in mlp]:
            shapes[f"{layer}.{part}.weight"] = (out, inner)
            shapes[f"{layer}.{part}.bias"] = (out,)
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"{layer}.{part}"] = (WIDTH,)
        for part in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            shapes[f"{layer}.{part}"] = (WIDTH,)
    rng = np.random.default_rng(seed)
    tensors = {}
    for key in sorted(shapes):
        numbers = rng.standard_normal(shapes[key], np.float32)
        fan = int(np.prod(shapes[key][1:])) if len(shapes[key]) == 2 or "projection" in key else 9
        tensors[key] = torch.from_numpy(numbers / max(fan, 1) ** 0.5)
    return tensors


def images(seed: int = 3) -> torch.Tensor:
    """Gray images [2, 1, SIZE, SIZE] in [0, 1]."""
    return torch.from_numpy(np.random.default_rng(seed).random((2, 1, SIZE, SIZE), np.float32))


def main() -> None:
    import transformers

    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    gold = {"version": np.array(transformers.__version__)}
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    for name in ("plain", "registers", "swiglu"):
        if name == "registers":
            config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=REGISTERS)
            kind = transformers.Dinov2WithRegistersModel
        else:
            config = transformers.Dinov2Config(**sizes, use_swiglu_ffn=name == "swiglu")
            kind = transformers.Dinov2Model
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            save_file(checkpoint(name), f"{folder}/model.safetensors", {"format": "pt"})
            model, found = kind.from_pretrained(folder, output_loading_info=True)
        assert not any(found.values()), found
        with torch.no_grad():
            answer = model.eval()((images().expand(-1, 3, -1, -1) - mean) / std)
        gold[name] = answer.last_hidden_state.numpy()
    np.savez_compressed(sys.argv[1], **gold)


if __name__ == "__main__":
    main()
