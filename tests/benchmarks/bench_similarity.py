"""How fast likeness is told: stored features summed up, and a task against stored statistics.

    OMP_NUM_THREADS=2 python tests/benchmarks/bench_similarity.py

Rows of a store are made up; 6 million of 768 features are 18 GB, read from links to a few files
(``--rows`` takes fewer). The reference is `numpy.cov` on rows that lie in memory. The task is a
registry of synthetic phantoms, 1,000 slices, compared with the statistics in a weights folder,
embedding, pictures and page included.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro

import core_mri
from core_mri.files.nifti import write_nifti
from core_mri.moments import Moments
from core_mri.physics.phantoms import phantom_volume
from core_mri.training_statistics import save_statistics
from core_mri.weights.folder import read_config
from data_registry import IngestConfig, Source, ingest
from data_registry.catalogue import Registry
from data_registry.cohorts import freeze
from data_registry.similarity.compare import cohort_data, compare, weights_data
from data_registry.similarity.features import EncoderFeatures
from data_registry.similarity.page import similarity_page
from data_registry.similarity.store import FeatureStore, VolumeFeatures
from data_registry.similarity.training import training_statistics
from data_registry.slices import SliceDataset

SLICES, VOLUMES = 50, 240
"""Of a part of the store: 12,000 rows."""


def main(rows: int = 6_000_000, width: int = 768, model: str = "vit_tiny_patch16") -> None:
    """Print the figures.

    Args:
        rows: Rows of features in the store.
        width: Features of a row.
        model: Encoder of the task.
    """
    with tempfile.TemporaryDirectory() as folder:
        registry = _registry(Path(folder))
        _stream(registry, rows, width)
        _task(registry, Path(folder), model)


def _registry(folder: Path) -> Registry:
    """25 volumes of 40 slices to ask about, and 40 others to have been trained on."""
    for region, count in (("brain", 25), ("knee", 40)):
        for subject in range(count):
            image, _ = phantom_volume(region, subject, "T1", size=96, num_slices=40)
            path = folder / region / f"sub-{region}{subject:02d}" / f"{region}_T1.nii.gz"
            path.parent.mkdir(parents=True)
            write_nifti(image, path)
    sources = tuple(
        Source(name=region, licence="CC0-1.0", role="image", root=str(folder / region))
        for region in ("brain", "knee")
    )
    Registry.create(folder / "registry", fractions=(1.0, 0.0, 0.0))
    ingest(IngestConfig(registry=folder / "registry", sources=sources, jobs=1))
    registry = Registry.open(folder / "registry")
    freeze(registry, "brains", "region = 'brain'")
    return registry


def _stream(registry: Registry, rows: int, width: int) -> None:
    rng = np.random.default_rng(0)
    template = registry.volumes(limit=1)[0]
    store = FeatureStore(registry, "made-up")
    parts = max(rows // (SLICES * VOLUMES), 1)
    own = [dataclasses.replace(template, volume_id=f"V{i:06d}") for i in range(VOLUMES)]
    features = rng.standard_normal((VOLUMES, SLICES, width)).astype(np.float32)
    store.write(
        [
            VolumeFeatures(row.volume_id, SLICES, np.arange(SLICES, dtype=np.int32), part, None)
            for row, part in zip(own, features, strict=True)
        ]
    )
    (first,) = store.parts()
    for number in range(1, parts):
        os.link(first, first.with_name(f"{number:08d}.parquet"))
    before = resource.getrusage(resource.RUSAGE_SELF)
    wall, cpu = time.perf_counter(), time.process_time()
    moments, sample = store.gather(own, 2000)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = resource.getrusage(resource.RUSAGE_SELF)
    grown = (after.ru_maxrss - before.ru_maxrss) / 1024
    flat = features.reshape(-1, width)
    direct = Moments.of(flat)
    apart = np.abs(moments.outer / parts - direct.outer).max() / np.abs(direct.outer).max()
    start = time.process_time()
    np.cov(flat.T)
    reference = (time.process_time() - start) / len(flat)
    print(
        f"{moments.n:,} rows of {width} features summed and sampled ({len(sample)}): "
        f"{wall:.0f} s, {cpu:.0f} CPU-seconds, {moments.n / cpu:,.0f} rows a CPU-second; "
        f"{cpu / moments.n / reference:.2f} of numpy.cov for a row; memory grew by {grown:.0f} MB; "
        f"relative difference from direct sums {apart:.1e}"
    )
    for part in store.parts():
        part.unlink()


def _task(registry: Registry, folder: Path, model: str) -> None:
    weights = folder / "run" / "weights"
    core_mri.save_model(core_mri.create_model(model), weights)
    maker = EncoderFeatures(core_mri.load_model(weights, device="cpu"), "bench")
    knees = SliceDataset(registry, where="region = 'knee'", min_foreground=0.0)
    statistics = training_statistics(
        maker, read_config(weights)["sha256"], knees, None, most_slices=1000
    )
    save_statistics(statistics, weights)
    wall, cpu = time.perf_counter(), time.process_time()
    found = compare(registry, cohort_data(registry, "brains"), weights_data(weights), maker)
    similarity_page(registry, [found], {}).write(folder / "page.html")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    slices = found.features[0].task.population
    print(
        f"{slices} slices against stored statistics with {model}, embedding and page included: "
        f"{wall:.0f} s, {cpu:.0f} CPU-seconds. {found.verdict}"
    )


if __name__ == "__main__":
    tyro.cli(main)
