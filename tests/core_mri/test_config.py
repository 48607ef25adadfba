from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from core_mri.config import (
    config_hash,
    differences,
    find_config,
    load_config,
    parse_command,
    save_config,
    to_mapping,
)
from core_mri.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    learning_rate: float = 1e-3
    """Step size."""


@dataclass(frozen=True, kw_only=True)
class Example:
    registry: Path
    """Where the data lie."""
    steps: int = 3
    """Number of steps."""
    mode: Literal["fast", "slow"] = "fast"
    """How."""
    scale: tuple[float, float] = (0.3, 1.0)
    """Range."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimizer."""


@dataclass(frozen=True, kw_only=True)
class Options:
    dry_run: bool = False
    """One batch only."""


def write(folder: Path, text: str) -> Path:
    path = folder / "example.yaml"
    path.write_text(text)
    return path


class TestRoundTrip:
    def test_saved_file_gives_an_equal_object(self, tmp_path: Path) -> None:
        config = Example(registry=Path("r"), scale=(0.1, 0.2), optimizer=Optimizer(learning_rate=7))
        save_config(config, tmp_path / "c.yaml")
        assert load_config(Example, tmp_path / "c.yaml") == config

    def test_hash_sees_every_value_and_nothing_else(self) -> None:
        one = Example(registry=Path("r"))
        assert config_hash(one) == config_hash(Example(registry=Path("r")))
        assert config_hash(one) != config_hash(Example(registry=Path("r"), steps=4))

    def test_yaml_floats_without_a_dot_are_numbers(self, tmp_path: Path) -> None:
        path = write(tmp_path, "registry: r\noptimizer: {learning_rate: 1e-3}\n")
        assert load_config(Example, path).optimizer.learning_rate == 1e-3


class TestErrors:
    def test_all_problems_at_once_with_suggestions(self, tmp_path: Path) -> None:
        path = write(
            tmp_path, "registy: r\nsteps: many\nmode: medium\noptimizer: {lerning_rate: 1}\n"
        )
        with pytest.raises(ConfigError) as caught:
            load_config(Example, path)
        text = str(caught.value)
        assert caught.value.code == "CONFIG-01"
        assert str(path) in text
        assert "missing key `registry`" in text
        assert "'registry'" in text
        assert "`steps` = 'many'" in text
        assert "'fast' or 'slow'" in text
        assert "perhaps you meant 'learning_rate'" in text

    @pytest.mark.parametrize("text", ["a: [1", "just words", "- 1\n- 2\n", "\x00"])
    def test_no_yaml_mapping(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(ConfigError) as caught:
            load_config(Example, write(tmp_path, text))
        assert caught.value.code == "CONFIG-02"

    def test_unknown_name_offers_the_nearest(self, tmp_path: Path) -> None:
        write(tmp_path, "registry: r\n")
        with pytest.raises(ConfigError, match="Perhaps you meant 'example'"):
            find_config("exmple", tmp_path)


class TestCommandLine:
    def parse(self, folder: Path, *words: str) -> tuple[Example, Options]:
        return parse_command(Example, Options, words, program="core-mri x", folder=folder)

    def test_flags_override_the_file(self, tmp_path: Path) -> None:
        write(tmp_path, "registry: r\nsteps: 5\n")
        config, options = self.parse(
            tmp_path, "example", "--dry-run", "--optimizer.learning-rate", "0.5"
        )
        assert config == Example(
            registry=Path("r"), steps=5, optimizer=Optimizer(learning_rate=0.5)
        )
        assert options.dry_run

    def test_without_a_file_required_fields_are_flags(self, tmp_path: Path) -> None:
        config, _ = self.parse(tmp_path, "--registry", "r")
        assert config == Example(registry=Path("r"))

    def test_wrong_flag_ends_with_2_and_a_hint(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as leaving:
            self.parse(tmp_path, "--registry", "r", "--stesp", "4")
        assert leaving.value.code == 2
        assert "--steps" in capsys.readouterr().err


class TestDifferences:
    def test_names_each_nested_change(self) -> None:
        old = to_mapping(Example(registry=Path("r")))
        new = to_mapping(
            Example(registry=Path("r"), steps=4, optimizer=Optimizer(learning_rate=1.0))
        )
        assert differences(old, new) == ["optimizer.learning_rate: 0.001 -> 1.0", "steps: 3 -> 4"]
        assert differences(old, old) == []
