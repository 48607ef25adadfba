from __future__ import annotations

import dataclasses

import pytest
import yaml

from core_mri.config import config_hash, load_config, save_config
from core_mri.errors import ConfigError
from pretrain.config import PretrainConfig


def keys(cls, prefix=""):
    for field in dataclasses.fields(cls):
        default = field.default_factory
        if dataclasses.is_dataclass(default):
            yield from keys(default, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def flat(mapping, prefix=""):
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


class TestPackaged:
    def test_there_is_one_for_each_purpose(self, packaged_configs):
        names = [path.stem for path in packaged_configs]
        assert names == [
            *("base_8gpu", "core_mri_tiny", "real_cpu", "small_1gpu"),
            *("tiny_cpu", "tiny_cpu_ijepa", "tiny_cpu_mae"),
        ]

    def test_each_loads_and_names_every_key(self, packaged_configs):
        for path in packaged_configs:
            load_config(PretrainConfig, path)
            content = yaml.safe_load(path.read_text())
            assert sorted(flat(content)) == sorted(keys(PretrainConfig))

    def test_saving_and_loading_gives_the_same_configuration(self, packaged_configs, tmp_path):
        for path in packaged_configs:
            config = load_config(PretrainConfig, path)
            save_config(config, tmp_path / "saved.yaml")
            again = load_config(PretrainConfig, tmp_path / "saved.yaml")
            assert again == config
            assert config_hash(again) == config_hash(config)


class TestChecks:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"steps": 0}, "steps must be positive"),
            ({"model": "vit_huge"}, "choose one of"),
            ({"views": {"global_size": 60}}, "multiple of the patch size 8"),
            ({"views": {"local_size": 8}}, "at least two patches"),
            ({"views": {"global_scale": [0.9, 0.2]}}, "low <= high"),
            ({"views": {"flip_rows": 1.5}}, "probability"),
            ({"views": {"bias_ratio": [0.5, 2.0]}}, "bias_ratio must be 1 <= low"),
            ({"views": {"ringing_kept": [0.0, 0.5]}}, "ringing_kept must be 0 < low"),
            ({"views": {"undersampling_center": 0.5}}, "undersampling_center"),
            ({"views": {"contrast": 1.0}}, "contrast"),
            ({"views": {"adjacent_slices": -1}}, "adjacent_slices must not be negative"),
            ({"views": {"num_global": 1}}, "distillation needs views.num_global: 2"),
            ({"masking": {"ratio": [0.0, 0.5]}}, "masking.ratio"),
            ({"objective": {"name": "ijepa"}}, "ijepa needs views.num_global: 1"),
            ({"mae": {"mask_ratio": 1.0}}, "mae.mask_ratio"),
            ({"mae": {"decoder_dim": 30}}, "multiple of 4 and of mae.decoder_heads"),
            ({"ijepa": {"predictor_heads": 5}}, "multiple of 4 and of ijepa.predictor_heads"),
            ({"ijepa": {"num_targets": 6}}, "may hide the whole view"),
            ({"objective": {"koleo_group": 1}}, "koleo_group must be at least 2"),
            ({"objective": {"student_temperature": 0.0}}, "temperatures must be positive"),
            ({"optimizer": {"clip_norm": 0.0}}, "clip_norm must be positive"),
            ({"optimizer": {"warmup_steps": 7}}, "the run has 6 steps"),
            ({"objective": {"teacher_temperature_warmup": 7}}, "the run has 6 steps"),
        ],
    )
    def test_impossible_settings_are_refused(self, tiny, changes, message):
        with pytest.raises(ConfigError, match=message) as caught:
            tiny(**changes)
        assert caught.value.code == "CONFIG-05"

    def test_unknown_keys_are_refused_with_a_suggestion(self, tiny):
        with pytest.raises(ConfigError, match="num_prototypes") as caught:
            tiny(objective={"num_prototype": 64})
        assert caught.value.code == "CONFIG-01"
