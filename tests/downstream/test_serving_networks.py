"""Weights as sources: a reconstruction network and a segmenter of classes, both untrained."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import core_mri
from core_mri.__main__ import main
from core_mri.physics.phantoms import phantom_volume
from tests.core_mri.test_segment_verb import DECODERS, release
from tests.downstream.serving_client import Client, ServerProcess

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    core_mri.save_model(core_mri.create_model("varnet_micro"), folder / "network")
    release(folder / "organs", next(iter(DECODERS)))
    return folder


@pytest.fixture(scope="module")
def networks(weights: Path) -> Iterator[Client]:
    process = ServerProcess(weights, str(weights / "network"), str(weights / "organs"))
    yield Client(process.url)
    process.stop()


def test_names_show_no_path(networks: Client, weights: Path) -> None:
    about = networks.ask("GET", "/v1/service")
    assert [(s["name"], s["role"]) for s in about.json()["sources"]] == [
        ("network", "reconstruct"), ("organs", "segment"),
    ]  # fmt: skip
    assert str(weights).encode() not in about.body


def test_a_network_reconstructs_as_the_command(
    networks: Client, weights: Path, raw: bytes, tmp_path: Path
) -> None:
    found = networks.run(raw)
    assert found["report"]["source"] == "network", found["error"]
    assert len(found["report"]["weights_sha256"]) == 64
    (tmp_path / "raw.h5").write_bytes(raw)
    words = [str(weights / "network"), str(tmp_path / "raw.h5"), "--out", str(tmp_path / "o.h5")]
    assert main(["reconstruct", *words, "--device", "cpu"]) == 0
    with h5py.File(io.BytesIO(networks.result(found["id"], "reconstruction.h5"))) as ours:
        images = ours["reconstruction"][()]
    with h5py.File(tmp_path / "o.h5") as command:
        np.testing.assert_allclose(images, command["reconstruction"][()], rtol=1e-4, atol=1e-6)


def test_classes_are_named(networks: Client, weights: Path, tmp_path: Path) -> None:
    scan = phantom_volume("abdomen", 1, size=48, num_slices=4)[0]
    core_mri.write_volume(scan, tmp_path / "scan.nii.gz")
    found = networks.run((tmp_path / "scan.nii.gz").read_bytes())
    assert {s["name"] for s in found["report"]["structures"]} == {"liver", "spleen"}
    (tmp_path / "mask.nii.gz").write_bytes(networks.result(found["id"], "mask.nii.gz"))
    out = tmp_path / "command.nii.gz"
    words = [str(weights / "organs"), str(tmp_path / "scan.nii.gz"), "--out", str(out)]
    assert main(["segment", *words, "--device", "cpu"]) == 0
    ours, command = (core_mri.read_volume(p) for p in (tmp_path / "mask.nii.gz", out))
    assert ours.same_grid(command)
    np.testing.assert_array_equal(ours.array, command.array)
