"""Numbers of a run at the metrics port of a node of Ray, as Prometheus reads them."""

from __future__ import annotations

import contextlib
import re
import time
import urllib.request
from dataclasses import dataclass

import pytest

from core_mri import launch
from core_mri.launch import ray_cluster, show_metrics
from core_mri.runs import Run
from core_mri.training.loop import fit

STEPS = 3


@dataclass(frozen=True)
class Config:
    """Of a run that does nothing."""


def test_without_ray_nothing_happens():
    show_metrics("run", {"loss": 1.0})
    assert launch._gauge.cache_info().currsize == 0


@pytest.mark.slow
@pytest.mark.ray
def test_the_newest_step_of_a_run_is_at_the_metrics_port(tmp_path, monkeypatch):
    """The losses are 10, 11, 12; a step of 0.1 s waits half of it, or a little less, for data."""
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    with ray_cluster(None, 1), Run.open(tmp_path / "mine", Config()) as run:
        fit(
            step, run=run, steps=STEPS, state=dict, restore=lambda _state: None,
            checkpoint_every=STEPS,
        )  # fmt: skip
        found = scraped("mine")
    assert found["step"] == STEPS
    assert found["loss"] == 12.0
    assert found["images_per_second"] == 80.0
    assert 0.2 < found["data_wait_share"] <= 0.5


def step(index):
    time.sleep(0.1)
    return {"loss": 10.0 + index, "images_per_second": 80.0, "wait_seconds": 0.05}


def scraped(run: str, patience_s: int = 60) -> dict[str, float]:
    import ray

    (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    text = ""
    for _ in range(patience_s):
        with (
            contextlib.suppress(OSError),  # not there yet
            urllib.request.urlopen(url, timeout=10) as answer,
        ):
            text = answer.read().decode()
        lines = re.findall(rf'^ray_core_mri_(\w+){{.*run="{run}".*}} (\S+)$', text, re.MULTILINE)
        if lines:
            return {name: float(value) for name, value in lines}
        time.sleep(1)
    raise TimeoutError(text)
