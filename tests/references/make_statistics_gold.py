"""Writes ``statistics_gold.json``: what statsmodels, scipy and torchmetrics say of small samples.

uv pip install --target REFS --no-deps statsmodels patsy torchmetrics lightning-utilities
PYTHONPATH=REFS python tests/references/make_statistics_gold.py
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from torchmetrics.functional.classification import multiclass_calibration_error


def main() -> None:
    rng = np.random.default_rng(20)
    holm = []
    for size in (1, 4, 13):
        p = rng.random(size) ** 3
        adjusted = multipletests(p, method="holm")[1]
        holm.append({"p": p.tolist(), "adjusted": adjusted.tolist()})
    power = []
    for n in (3, 8, 12, 30):
        values = rng.normal(0.05, 0.1, n)
        effect = TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8)
        difference = float(effect * values.std(ddof=1))
        power.append({"differences": values.tolist(), "detectable": difference})
    bootstrap = []
    for n in (8, 25):
        values = rng.beta(8, 2, n)
        found = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=200_000, method="percentile", rng=1
        ).bootstrap_distribution  # fmt: skip
        tail = scipy.stats.norm.cdf(-np.sqrt(n / (n - 1)) * scipy.stats.t.ppf(0.975, n - 1))
        low, high = np.quantile(found, (tail, 1 - tail)).tolist()
        bootstrap.append({"values": values.tolist(), "low": low, "high": high})
    probabilities = rng.dirichlet([1, 1, 1], 60)
    classes = np.array([rng.choice(3, p=row) for row in probabilities])
    ece = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(classes), num_classes=3, n_bins=15
    )
    content = {
        "versions": {name: version(name) for name in ("scipy", "statsmodels", "torchmetrics")},
        "holm": holm,
        "power": power,
        "bootstrap": bootstrap,
        "calibration": {
            "probabilities": probabilities.tolist(),
            "classes": classes.tolist(),
            "ece": float(ece),
        },
    }
    path = Path(__file__).with_name("statistics_gold.json")
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
