"""A data set in memory with the interface of `data_registry.slices.SliceDataset`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

import pretrain.train
from core_mri.config import load_config
from core_mri.physics.phantoms import phantom_volume
from data_registry.governance.propagation import RegisteredSource, mixture_of
from data_registry.slices import SliceSample, StoredSlice
from data_registry.source_cards import CardFacts
from pretrain.config import CONFIGS, PretrainConfig


@dataclass(frozen=True)
class FakeVolume:
    volume_id: str
    subject_id: str
    region: str
    sequence: str = "T1"
    plane: str = "axial"
    source: str = "phantoms"
    licence: str = "CC0-1.0"
    synthetic: bool = True
    vendor: str = "unknown"
    field_strength_t: float | None = None
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)


class MemorySlices:
    """Slices of synthetic phantoms; picklable, volumes stand together."""

    def __init__(self, regions=("brain", "knee"), subjects=range(4), num_slices=6, size=48):
        self.volumes = []
        self._slices = []
        for region in regions:
            for subject in subjects:
                image, _ = phantom_volume(region, subject, size=size, num_slices=num_slices, seed=0)
                name = f"{region}-{subject}"
                self.volumes.append(FakeVolume(name, name, region))
                array = np.asarray(image.array, dtype=np.float32)
                array = np.moveaxis(array, int(np.argmin(array.shape)), 0) / array.max()
                self._slices += [(len(self.volumes) - 1, i, s) for i, s in enumerate(array)]

    def __len__(self):
        return len(self._slices)

    def __getitem__(self, position):
        number, index, image = self._slices[position]
        row = self.volumes[number]
        return SliceSample(
            image, row.volume_id, index, row.subject_id, row.region, row.sequence, row.plane
        )

    def stored(self, position):
        number, index, image = self._slices[position]
        row = self.volumes[number]
        return StoredSlice(image, 0.0, 1.0, row.volume_id, index, row.region, row.plane)

    def volume_of(self, position):
        return self.volumes[self._slices[position][0]]

    def volume_numbers(self):
        return np.array([number for number, _, _ in self._slices])

    def mixture(self):
        return mixture_of([RegisteredSource(name="phantoms", licence="CC0-1.0", facts=CardFacts())])

    def strata(self):
        kinds = [(row.region, row.sequence, row.plane) for row in self.volumes]
        return np.array([sorted(set(kinds)).index(kind) for kind in kinds])


@pytest.fixture(scope="session")
def memory_slices():
    return MemorySlices()


def tiny_config(folder, **changes) -> PretrainConfig:
    """A configuration that takes some hundredths of a second for a step."""
    views = {"global_size": 32, "local_size": 16, "num_local": 2} | changes.pop("views", {})
    objective = {
        "koleo_group": 4,
        "num_prototypes": 64,
        "head_hidden": 64,
        "head_bottleneck": 32,
        "teacher_temperature_warmup": 0,
    } | changes.pop("objective", {})
    optimizer = {"warmup_steps": 2, "freeze_prototypes_steps": 1} | changes.pop("optimizer", {})
    return load_config(
        PretrainConfig,
        {
            "registry": str(folder / "registry"),
            "out": str(folder / "run"),
            "steps": 6,
            "batch_size": 8,
            "model": "vit_micro_patch8",
            "drop_path": 0.0,
            "layer_scale": 0.0,
            "checkpoint_every": 2,
            "probe_slices": 16,
            "statistics_slices": 0,
            "health": {"every": 2, "probe_every": 3, "probe_slices": 16},
            "device": "cpu",
            "views": views,
            "objective": objective,
            "optimizer": optimizer,
        }
        | changes,
    )


@pytest.fixture
def tiny(tmp_path):
    return partial(tiny_config, tmp_path)


def read_from_memory(patch, slices):
    """Runs of this process read these slices instead of a registry."""
    patch.setattr(pretrain.train, "open_slices", lambda _config: slices)
    patch.setattr(pretrain.train, "open_validation", lambda _config: None)
    patch.setattr(pretrain.train, "check_overlap", lambda *_arguments: "not checked")


def leave_at_the_end(patch):
    """Runs of this process make no weights, probe and report."""
    patch.setattr(pretrain.train, "finish", lambda *_arguments: None)


def in_memory_worker(slices, payload):
    """`run_worker` for `tests.workers`, whose processes see no fixture."""
    with pytest.MonkeyPatch.context() as patch:
        read_from_memory(patch, slices)
        pretrain.train.run_worker(payload)


def only_losses_worker(slices, payload):
    """As `in_memory_worker`, without weights, probe and report at the end."""
    with pytest.MonkeyPatch.context() as patch:
        leave_at_the_end(patch)
        in_memory_worker(slices, payload)


@pytest.fixture(scope="class")
def finished(tmp_path_factory, memory_slices):
    """A finished run and its weights folder."""
    config = tiny_config(tmp_path_factory.mktemp("finished"))
    config.registry.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        read_from_memory(patch, memory_slices)
        yield config, pretrain.train.train(config)


@pytest.fixture
def in_memory(monkeypatch, memory_slices):
    """Runs of this process read the phantoms instead of a registry."""
    read_from_memory(monkeypatch, memory_slices)
    return memory_slices


@pytest.fixture
def only_losses(in_memory, monkeypatch):
    """As `in_memory`, without weights, probe and report at the end."""
    leave_at_the_end(monkeypatch)
    return in_memory


@pytest.fixture(scope="session")
def packaged_configs():
    return sorted(CONFIGS.glob("*.yaml"))


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """A real registry of synthetic scans."""
    from core_mri.files.nifti import write_nifti
    from data_registry import IngestConfig, Source, ingest

    folder = tmp_path_factory.mktemp("pretrain")
    for region in ("brain", "knee"):
        for subject in range(6):
            image, _ = phantom_volume(region, subject, size=48, num_slices=6)
            scan = folder / "scans" / f"sub-{subject:02d}{region}" / f"{region}_T1.nii.gz"
            scan.parent.mkdir(parents=True)
            write_nifti(image, scan)
    source = Source(name="phantoms", licence="CC0-1.0", root=str(folder / "scans"), synthetic=True)
    ingest(IngestConfig(registry=folder / "registry", sources=(source,), jobs=1))
    return folder / "registry"
