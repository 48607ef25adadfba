"""Gold values from fastMRI itself, for tests that must not need it.

    python tests/references/make_fastmri_gold.py FASTMRI_SOURCE > tests/references/fastmri_gold.json

FASTMRI_SOURCE is a checkout of facebookresearch/fastMRI; the committed file was made with commit
91f2df4711adbb6d643df1810f234e4abcf5881b (2025-01-21, MIT), torch 2.15.0, numpy 2.4.6, scikit-image
0.26.0, runstats 2.0.0. Arrays that go in are drawn by `arrays` below, which the tests call too.
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np

WIDTHS = (320, 368, 372, 396, 213, 333)
SETTINGS = (([0.08], [4]), ([0.04], [8]), ([0.08, 0.04], [4, 8]), ([0.02, 0.1], [2, 6]))
NAMES = ("file1000001.h5", "file_brain_AXT2_200_2000019.h5", "a.h5", "file1002570.h5")
KINDS = ("random", "equispaced", "equispaced_fraction", "magic", "magic_fraction")
SHAPES = ((8, 6), (7, 5), (5, 8), (9, 9), (1, 7))


def arrays(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Complex128 standard normal numbers."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def volumes(seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A reference with one dark slice, and an estimate."""
    rng = np.random.default_rng(seed)
    reference = (
        np.abs(rng.standard_normal(shape)).cumsum(axis=1)
        * np.linspace(0.01, 1, shape[0])[:, None, None]
    )
    return reference, np.abs(reference + 0.1 * rng.standard_normal(shape))


def pack(mask: np.ndarray) -> str:
    """sha1 of the packed bits, first 12 digits."""
    return hashlib.sha1(np.packbits(np.asarray(mask, dtype=bool)).tobytes()).hexdigest()[:12]


def pairs(x: np.ndarray) -> list:
    """Complex numbers as nested lists of real and imaginary part."""
    return np.stack([x.real, x.imag], -1).tolist()


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import fastmri
    import torch
    from fastmri import evaluate
    from fastmri.data import subsample, transforms

    def as_tensor(x: np.ndarray) -> torch.Tensor:
        return torch.view_as_real(torch.from_numpy(x))

    gold: dict[str, list] = {"masks": [], "combined": [], "fft": [], "metrics": [], "instance": []}
    for kind in KINDS:
        for fractions, accelerations in SETTINGS:
            for width in WIDTHS:
                for name in NAMES:
                    function = subsample.create_mask_for_mask_type(kind, fractions, accelerations)
                    mask, low = function((1, width, 2), seed=tuple(map(ord, name)))
                    lines = np.flatnonzero(mask.numpy().ravel())
                    gold["masks"].append(
                        [kind, fractions, accelerations, width, name, int(low), len(lines),
                         lines[:4].tolist(), pack(mask.numpy().ravel())]
                    )  # fmt: skip
    for seed in range(8):
        function = subsample.RandomMaskFunc([0.08, 0.04], [4, 8, 6], allow_any_combination=True)
        mask, low = function((1, 368, 2), seed=seed)
        gold["combined"].append([seed, int(low), pack(mask.numpy().ravel())])
    for seed, shape in enumerate(SHAPES):
        x = as_tensor(arrays(seed, shape))
        gold["fft"].append(
            {
                "seed": seed, "shape": shape,
                "fft2c": fastmri.fft2c(x).numpy().tolist(),
                "ifft2c": fastmri.ifft2c(x).numpy().tolist(),
                "rss": fastmri.rss_complex(x, dim=0).numpy().tolist(),
                "crop": transforms.complex_center_crop(x, (1, 3)).numpy().tolist(),
            }
        )  # fmt: skip
    for seed, shape in enumerate([(4, 20, 24), (3, 7, 31), (6, 33, 16)]):
        reference, estimate = volumes(seed, shape)
        gold["metrics"].append(
            {
                "seed": seed, "shape": shape,
                "nmse": float(evaluate.nmse(reference, estimate)),
                "psnr": float(evaluate.psnr(reference, estimate)),
                "ssim": float(evaluate.ssim(reference, estimate)[0]),
            }
        )  # fmt: skip
        image, mean, std = transforms.normalize_instance(torch.from_numpy(reference), eps=1e-11)
        gold["instance"].append(
            {"seed": seed, "shape": shape, "mean": float(mean), "std": float(std),
             "first": image.ravel()[:5].tolist()}
        )  # fmt: skip
    print(json.dumps(gold, separators=(",", ":")))


if __name__ == "__main__":
    main()
