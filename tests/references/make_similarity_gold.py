"""Writes ``similarity_gold.json``: what torch-fidelity, prdc and POT say of small samples.

uv pip install --target REFS --no-deps torch-fidelity prdc POT
PYTHONPATH=REFS python tests/references/make_similarity_gold.py
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np


def samples() -> tuple[np.ndarray, np.ndarray]:
    """Two sets of 60 rows of 12 features that differ in mean and spread."""
    rng = np.random.default_rng(15)
    return rng.normal(0, 1, (60, 12)), rng.normal(0.3, 1.2, (60, 12))


def main() -> None:
    import ot
    import torch
    from prdc import compute_prdc
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kernel_poly, mmd2

    x, y = samples()
    kid = mmd2(
        *(
            kernel_poly(a, b, kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None,
                        kid_kernel_poly_coef0=1)
            for a, b in ((x, x), (x, y), (y, y))
        )
    )  # fmt: skip
    statistics = (fid_features_to_statistics(torch.from_numpy(rows)) for rows in (x, y))
    fid = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    directions = np.random.default_rng(0).standard_normal((12, 128))
    directions /= np.linalg.norm(directions, axis=0)
    content = {
        "versions": {name: version(name) for name in ("torch-fidelity", "prdc", "POT", "numpy")},
        "kid": float(kid),
        "fid": float(fid),
        "coverage": float(compute_prdc(x, y, nearest_k=5)["coverage"]),
        "density": float(compute_prdc(y, x, nearest_k=5)["density"]),
        "sliced_wasserstein": float(ot.sliced_wasserstein_distance(x, y, projections=directions)),
    }
    path = Path(__file__).with_name("similarity_gold.json")
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
