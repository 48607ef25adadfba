"""Gold values of fastMRI's networks and of its whole chains, for tests that must not need it.

    python tests/references/make_reconstruction_gold.py FASTMRI > \
        tests/references/reconstruction_gold.json

FASTMRI is a folder that holds the package `fastmri` (here PyPI's 0.3.0, MIT, with torch 2.15.0 and
numpy 2.4.6; runstats 2.0.0 beside it). Weights and k-space are drawn by `weights` and `samples`
below, which the tests call too; no published weights and no scan are in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import numpy as np

UNET = {"chans": 4, "num_pool_layers": 3}
VARNET = {"num_cascades": 3, "sens_chans": 2, "sens_pools": 2, "chans": 4, "pools": 3}
NETWORK_SHAPES = ((1, 1, 32, 48), (2, 1, 37, 29))
"""Images [B, 1, H, W]; odd sides are padded inside."""
CHAINS = (
    {"coils": 4, "matrix": (56, 48), "size": (40, 40), "padding": (0, 48)},
    {"coils": 3, "matrix": (50, 45), "size": (40, 40), "padding": (3, 41)},
    {"coils": 1, "matrix": (48, 38), "size": (40, 40), "padding": (0, 38)},
)
"""Scans: k-space as read, size of the image, lines that were encoded; the last one is narrower than
its image (FLAIR_203)."""
NAME = "file1000001.h5"
FRACTION, ACCELERATION = 0.2, 3


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """A state dict: He's deviation for convolutions, about 0.8 for the weights of consistency."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        fan_in = int(np.prod(shape[1:])) or 1
        values = rng.standard_normal(shape) * (2 / fan_in) ** 0.5
        drawn[name] = (0.8 + 0.05 * values if "dc_weight" in name else values).astype(np.float32)
    return drawn


def images(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Normalised images."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def samples(seed: int, coils: int, matrix: tuple[int, int], padding: tuple[int, int]) -> np.ndarray:
    """K-space of two slices [2, C, H, W], low frequencies strong; zero where not encoded."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((2, 2, coils, *matrix))
    rows, columns = (np.arange(n) - n // 2 for n in matrix)
    falling = 1e-4 / (1 + rows[:, None] ** 2 + columns**2) ** 0.6
    kspace = (noise[0] + 1j * noise[1]) * falling
    kspace[..., : padding[0]] = 0
    kspace[..., padding[1] :] = 0
    return kspace.astype(np.complex64)


def rounded(x: np.ndarray) -> list:
    """Six digits, every third value of every second row."""
    kept = np.asarray(x)[..., ::2, ::3]
    return [float(f"{value:.6e}") for value in kept.ravel()]


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import torch
    from fastmri.data import transforms
    from fastmri.data.subsample import RandomMaskFunc
    from fastmri.models import Unet, VarNet

    def filled(model: torch.nn.Module, seed: int) -> torch.nn.Module:
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        drawn = {name: torch.from_numpy(w) for name, w in weights(shapes, seed).items()}
        model.load_state_dict(drawn)
        return model.eval()

    unet, varnet = filled(Unet(1, 1, **UNET), 1), filled(VarNet(**VARNET), 2)
    gold: dict[str, list] = {"unet": [], "unet_chain": [], "varnet_chain": [], "varnet_test": []}
    gold["keys"] = [
        sorted(Unet(1, 1, chans=32).state_dict()), sorted(VarNet(12).state_dict())
    ]  # fmt: skip
    with torch.no_grad():
        for shape in NETWORK_SHAPES:
            gold["unet"].append(rounded(unet(torch.from_numpy(images(3, shape))).numpy()))
        for seed, scan in enumerate(CHAINS):
            kspace = samples(seed, scan["coils"], scan["matrix"], scan["padding"])
            left, right = scan["padding"]
            side = min(scan["size"][1], scan["matrix"][1])
            attributes = {
                "recon_size": (*scan["size"], 1), "padding_left": left, "padding_right": right,
                "encoding_size": (*scan["matrix"], 1), "max": 0.0,
            }  # fmt: skip
            target = np.zeros((side, side), np.float32)
            draw = RandomMaskFunc([FRACTION], [ACCELERATION])
            challenge = "singlecoil" if scan["coils"] == 1 else "multicoil"
            crop = transforms.UnetDataTransform(challenge, draw)
            through = transforms.VarNetDataTransform(draw)
            found: dict[str, list] = {"unet": [], "varnet": [], "test": []}
            for one in kspace:
                given = one[0] if challenge == "singlecoil" else one
                item = crop(given, None, target, attributes, NAME, 0)
                refined = unet(item.image[None, None])[0, 0] * item.std + item.mean
                found["unet"].append(refined.numpy())
                if scan["coils"] == 1:
                    continue
                item = through(one, None, target, attributes, NAME, 0)
                for key, low in (("varnet", item.num_low_frequencies), ("test", 0)):
                    image = varnet(item.masked_kspace[None], item.mask[None], low)[0]
                    image = transforms.center_crop(image, (side, side))
                    found[key].append(image.numpy())
            for key, name in (("unet", "unet_chain"), ("varnet", "varnet_chain"),
                              ("test", "varnet_test")):  # fmt: skip
                gold[name].append(rounded(np.stack(found[key])) if found[key] else [])
    print(json.dumps(gold, separators=(",", ":")))


if __name__ == "__main__":
    main()
