from __future__ import annotations

import pytest

from core_mri.config import load_config, save_config, to_mapping
from core_mri.errors import ConfigError
from downstream.config import FinetuneConfig, SuiteConfig, Task
from downstream.recipe import Recipe


class TestPackagedFiles:
    def test_all_load_and_survive_saving(self, packaged, tmp_path):
        assert len(packaged) >= 3
        for number, (_, config) in enumerate(packaged):
            saved = tmp_path / f"{number}.yaml"
            save_config(config, saved)
            assert load_config(type(config), saved) == config

    def test_the_demo_suite_holds_both_kinds_of_task(self, packaged):
        (demo,) = [config for path, config in packaged if path.stem == "demo"]
        assert {task.kind for task in demo.tasks} == {"segmentation", "classification"}

    def test_few_shot_names_every_field(self, packaged):
        import yaml

        (path,) = [path for path, _ in packaged if path.stem == "few_shot_5"]
        written = yaml.safe_load(path.read_text())
        config = load_config(FinetuneConfig, written)
        assert written.keys() == to_mapping(config).keys()
        assert written["recipe"].keys() == to_mapping(config)["recipe"].keys()
        assert written["task"].keys() == to_mapping(config)["task"].keys()


class TestCombinations:
    @pytest.mark.parametrize(
        "task",
        [
            {"name": "a/b", "kind": "classification", "target": "region"},
            {"name": "a", "kind": "classification"},
            {"name": "a", "kind": "classification", "target": "region", "labels": {"x": 1}},
            {"name": "a", "kind": "segmentation"},
            {"name": "a", "kind": "segmentation", "labels": {"x": 0}},
            {"name": "a", "kind": "segmentation", "labels": {"x": 1, "y": 1}},
            {"name": "a", "kind": "segmentation", "labels": {"x": 1}, "target": "region"},
        ],
    )
    def test_impossible_tasks_are_refused(self, task):
        with pytest.raises(ConfigError) as caught:
            Task(**task)
        assert caught.value.code == "CONFIG-05"

    @pytest.mark.parametrize(
        "change", [{"image_size": 0}, {"num_validation": -1}, {"warmup_fraction": 1.0}]
    )
    def test_impossible_recipes_are_refused(self, change):
        with pytest.raises(ConfigError) as caught:
            Recipe(**change)
        assert caught.value.code == "CONFIG-05"

    @pytest.mark.parametrize(
        "change",
        [
            {"k": ()},
            {"k": (5, 5)},
            {"k": (0,)},
            {"weights": {}},
            {"tasks": ()},
            {"draws": 0},
        ],
    )
    def test_impossible_suites_are_refused(self, change, tmp_path):
        values = {
            "registry": tmp_path,
            "out": tmp_path,
            "weights": {"a": "b"},
            "tasks": (Task(name="a", kind="classification", target="region"),),
        }
        SuiteConfig(**values)
        with pytest.raises(ConfigError) as caught:
            SuiteConfig(**(values | change))
        assert caught.value.code == "CONFIG-05"

    def test_unknown_key_is_named(self, packaged):
        (config,) = [c for p, c in packaged if p.stem == "few_shot_5"]
        wrong = to_mapping(config)
        wrong["recipe"]["imagesize"] = 96
        with pytest.raises(ConfigError, match=r"recipe.imagesize.*image_size"):
            load_config(FinetuneConfig, wrong)
