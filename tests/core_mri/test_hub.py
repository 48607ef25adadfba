"""Push and pull against a server on this machine; the real hub was never called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import core_mri
from core_mri.errors import WeightsError
from core_mri.weights.hub import HubSource, parse_source, pull, push
from tests.core_mri.hub_server import Hub, hub


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    with hub() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = core_mri.save_model(core_mri.create_model("vit_micro_patch8"), tmp_path / "weights")
    (path / "notes.txt").write_text("not for others")
    return path


def test_what_is_pushed_comes_back_equal(server: Hub, folder: Path, tmp_path: Path) -> None:
    commit = push(folder, "lab/encoder", endpoint=server.endpoint)
    assert sorted(server.repos["lab/encoder"][commit]) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert server.private["lab/encoder"]
    for source in ("hf:lab/encoder", f"hf:lab/encoder@{commit}"):
        path = pull(source, folder=tmp_path / commit[:3], endpoint=server.endpoint)
        for name in ("README.md", "config.json", "model.safetensors"):
            assert (path / name).read_bytes() == (folder / name).read_bytes()


@torch.no_grad()
def test_load_model_takes_the_hub_as_a_source(server: Hub, folder: Path) -> None:
    commit = push(folder, "lab/encoder", endpoint=server.endpoint)
    images = torch.rand(1, 1, 64, 64)
    expected = core_mri.load_model(folder, device="cpu")(images).cls
    source = f"hf:lab/encoder@{commit}"
    loaded = core_mri.load_model(source, device="cpu", endpoint=server.endpoint)
    assert torch.equal(loaded(images).cls, expected)


@torch.no_grad()
def test_a_known_commit_needs_no_server(server: Hub, folder: Path) -> None:
    commit = push(folder, "lab/encoder", endpoint=server.endpoint)
    source = f"hf:lab/encoder@{commit}"
    pull(source, endpoint=server.endpoint)
    count = len(server.requests)
    pull(source, endpoint=server.endpoint)
    assert len(server.requests) == count


def test_pushing_again_makes_a_new_commit(server: Hub, folder: Path) -> None:
    first = push(folder, "lab/encoder", endpoint=server.endpoint)
    core_mri.save_model(core_mri.create_model("vit_micro_patch8"), folder)
    second = push(folder, "lab/encoder", endpoint=server.endpoint)
    assert first != second
    assert server.heads["lab/encoder"] == second


def test_damage_on_the_way_is_found(server: Hub, folder: Path, tmp_path: Path) -> None:
    commit = push(folder, "lab/encoder", endpoint=server.endpoint)
    files = server.repos["lab/encoder"][commit]
    damaged = bytearray(files["model.safetensors"])
    damaged[-1] ^= 1
    files["model.safetensors"] = bytes(damaged)
    with pytest.raises(WeightsError, match="SHA-256"):
        pull("hf:lab/encoder", folder=tmp_path / "there", endpoint=server.endpoint)


def test_a_damaged_folder_does_not_leave(server: Hub, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="SHA-256"):
        push(folder, "lab/encoder", endpoint=server.endpoint)
    assert server.requests == []


@pytest.mark.parametrize("source", ["hf:lab/none", "hf:lab/encoder@" + "0" * 40])
def test_what_is_not_there_is_named(server: Hub, folder: Path, source: str) -> None:
    push(folder, "lab/encoder", endpoint=server.endpoint)
    with pytest.raises(WeightsError, match=source) as caught:
        pull(source, endpoint=server.endpoint)
    assert caught.value.code == "WEIGHTS-03"


def test_no_server_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="hf:lab/encoder"):
        pull("hf:lab/encoder", folder=tmp_path / "there", endpoint="http://127.0.0.1:9")


def test_sources_are_read() -> None:
    assert parse_source("hf:lab/a.b-c@v1.0") == HubSource("lab/a.b-c", "v1.0")
    assert parse_source("lab/name") == HubSource("lab/name", None)
    for wrong in ("hf:name", "hf:lab/name@", "hf:../../x/y", "hf:"):
        with pytest.raises(WeightsError, match="names no repository"):
            parse_source(wrong)
