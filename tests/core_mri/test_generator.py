"""Promises of generators: slices of a seed, and weights folders that bring them back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from core_mri import Predictor, load_model, save_model
from core_mri.errors import ConfigError, WeightsError
from core_mri.models.generator import Generator, build_generator
from core_mri.models.generator_config import GeneratorConfig

LABELS = {1: "gray matter", 2: "lesion"}
SIZES = {
    "spade": GeneratorConfig(kind="spade", image_size=32, width=8, depth=3, style=4),
    "diffusion": GeneratorConfig(
        kind="diffusion", image_size=32, width=8, depth=2, sampling_steps=3
    ),
}


@pytest.fixture(params=SIZES)
def generator(request: pytest.FixtureRequest) -> Generator:
    torch.manual_seed(0)
    built = build_generator(SIZES[request.param], labels=LABELS, sequences=("T1", "FLAIR")).eval()
    with torch.no_grad():  # diffusion's last layers and its control start at zero
        for parameter in built.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return built


@pytest.fixture
def labels() -> torch.Tensor:
    grid = torch.arange(32)
    square = ((grid[:, None] - 16).abs() < 10) & ((grid[None] - 16).abs() < 8)
    return torch.stack([square.long(), 2 * square.long(), torch.zeros(32, 32, dtype=torch.long)])


class TestGenerate:
    def test_shape_and_range(self, generator: Generator, labels: torch.Tensor) -> None:
        images = generator.generate(labels, 0)
        assert images.shape == (3, 2, 32, 32)
        assert images.min() >= 0
        assert images.max() <= 1

    def test_function_of_the_seed(self, generator: Generator, labels: torch.Tensor) -> None:
        first, again, other = (generator.generate(labels, seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_global_generator_is_left_alone(
        self, generator: Generator, labels: torch.Tensor
    ) -> None:
        before = torch.random.get_rng_state()
        generator.generate(labels, 1)
        assert torch.equal(before, torch.random.get_rng_state())

    def test_labels_matter(self, generator: Generator, labels: torch.Tensor) -> None:
        made = generator.generate(labels, 1), generator.generate(labels.flip(0), 1)
        assert not torch.allclose(made[0][0], made[1][0], atol=1e-4)

    def test_more_slices_than_a_batch(self, generator: Generator, labels: torch.Tensor) -> None:
        many = labels[:1].expand(18, -1, -1)
        assert generator.generate(many, 0).shape[0] == 18


class TestWeightsFolder:
    def test_round_trip(self, generator: Generator, labels: torch.Tensor, tmp_path: Path) -> None:
        save_model(generator, tmp_path, {"summary": "A test.", "subjects": ["S1"]})
        loaded = load_model(tmp_path, device="cpu")
        assert isinstance(loaded, Generator)
        assert loaded.labels == LABELS
        assert loaded.sequences == ("T1", "FLAIR")
        assert loaded.card["subjects"] == ["S1"]
        assert torch.equal(loaded.generate(labels, 3), generator.generate(labels, 3))

    def test_card_says_what_it_takes(self, generator: Generator, tmp_path: Path) -> None:
        text = (save_model(generator, tmp_path) / "README.md").read_text()
        assert "1 gray matter, 2 lesion" in text
        assert "synthetic slices" in text
        assert "ViT" not in text

    def test_reads_no_scan(self, generator: Generator) -> None:
        with pytest.raises(WeightsError, match=r"WEIGHTS-03.*make scans"):
            Predictor(generator)

    def test_damaged_description(self, generator: Generator, tmp_path: Path) -> None:
        path = save_model(generator, tmp_path) / "config.json"
        facts = json.loads(path.read_text())
        facts["generator"]["kind"] = "oracle"
        path.write_text(json.dumps(facts))
        with pytest.raises(WeightsError, match="WEIGHTS-01"):
            load_model(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 36, "depth": 3},
        {"kind": "diffusion", "image_size": 32, "width": 12, "depth": 2},
        {"style": 0},
    ],
)
def test_impossible_sizes(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="CONFIG-05"):
        GeneratorConfig(**wrong)  # type: ignore[arg-type]
