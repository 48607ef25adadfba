from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import pretrain.bench
from core_mri.errors import ConfigError
from pretrain.bench import bench
from pretrain.calibration import Measured, calibrate, load_calibration
from pretrain.cli import main
from pretrain.cluster import Cluster
from pretrain.cost import estimate, to_json
from pretrain.flops import StepWork

TRUTH = {
    "encoder": (2e-12, 3e-9),
    "heads": (2e-12, 4e-3, 5e-10),
    "views": (1e-3, 4e-9),
    "update": (2e-3, 1e-10),
}
SMALL = StepWork(
    encoder_flops=4e10,
    encoder_elements=1e7,
    head_flops=3e9,
    logits=2e6,
    pixels=4e5,
    parameters=2e6,
)
LARGE = StepWork(
    encoder_flops=4e12,
    encoder_elements=2e8,
    head_flops=2e10,
    logits=6e7,
    pixels=2e6,
    parameters=2e7,
)


def measured(work, wait=0.0, **changes):
    """A step of a device that is exactly what the model says."""
    parts = {
        "rest": np.dot(TRUTH["encoder"], (work.encoder_flops, work.encoder_elements)),
        "head": np.dot(TRUTH["heads"], (work.head_flops, 1, work.logits)),
        "views": np.dot(TRUTH["views"], (1, work.pixels)),
        "update": np.dot(TRUTH["update"], (1, work.parameters)),
    }
    seconds = float(sum(parts.values())) / (1 - wait)
    known = {
        "device": "cpu",
        "precision": "float32",
        "batch_size": 32,
        "peak_flops": 1e11,
        "peak_source": "a test",
        "seconds_per_step": seconds,
        "data_wait": wait,
        "loader_workers": 0,
        "mfu_kept": 0.3,
        **{f"{part}_share": float(parts[part]) / seconds for part in ("views", "update", "head")},
        "work": work,
    }
    return Measured(**(known | changes))


class TestFit:
    def test_two_measurements_find_the_truth(self):
        found = calibrate({"a": measured(SMALL), "b": measured(LARGE, wait=0.2)})
        assert found.encoder == pytest.approx(TRUTH["encoder"])
        assert found.heads == pytest.approx(TRUTH["heads"])
        assert found.views == pytest.approx(TRUTH["views"])
        assert found.update == pytest.approx(TRUTH["update"])
        other = replace(LARGE, logits=1e6, encoder_flops=1e12, parameters=5e6)
        assert found.seconds(other) == pytest.approx(measured(other).seconds_per_step)

    def test_one_foretells_its_own_step(self):
        found = calibrate({"a": measured(SMALL)})
        assert found.encoder[1] == found.views[0] == found.update[0] == 0
        assert found.heads[1:] == (0, 0)
        assert found.seconds(SMALL) == pytest.approx(measured(SMALL).seconds_per_step)

    def test_waiting_is_the_time_of_a_slice(self):
        row = measured(SMALL, wait=0.25)
        found = calibrate({"a": row})
        assert found.slice_ == pytest.approx(0.25 * row.seconds_per_step / 32)
        assert found.seconds(SMALL) == pytest.approx(0.75 * row.seconds_per_step)
        assert calibrate({"a": measured(SMALL, loader_workers=2)}).slice_ is None

    def test_devices_are_not_mixed(self):
        with pytest.raises(ConfigError, match="different devices"):
            calibrate({"a": measured(SMALL), "b": measured(SMALL, device="NVIDIA H200")})

    @pytest.mark.parametrize(
        "changes",
        [
            {"seconds_per_step": 0.0},
            {"data_wait": 1.0},
            {"head_share": -0.1},
            {"head_share": 0.5, "views_share": 0.6},
        ],
    )
    def test_impossible_values(self, changes):
        with pytest.raises(ConfigError, match="no measurement"):
            measured(SMALL, **changes)

    def test_no_work(self):
        row = measured(SMALL)
        with pytest.raises(ConfigError, match=r"work\.logits"):
            replace(row, work=replace(SMALL, logits=0.0))


class TestFile:
    @pytest.fixture
    def file(self, tmp_path, monkeypatch, tiny, registry):
        """What the command writes."""
        from core_mri.config import save_config

        config = tiny(registry=str(registry))
        save_config(config, tmp_path / "run.yaml")
        monkeypatch.setattr(pretrain.bench, "WARMUP", 1)
        return config, tmp_path / "run.yaml", tmp_path / "bench.json"

    def test_bench_to_cost(self, file, capsys):
        config, run, path = file
        assert main(["bench", str(run), "--measured-steps", "3", "--json"]) == 0
        path.write_text(capsys.readouterr().out)
        written = json.loads(path.read_text())
        words = ["cost", str(run), "--price", "0.1", "--gpus", "1", "--calibration", str(path)]
        assert main(words) == 0
        text = capsys.readouterr().out
        assert "measured on cpu, float32" in text
        assert "memory of a GPU unknown" in text
        found = estimate(config, Cluster(price=0.1, gpus=1, calibration=(path,)))
        seconds = written["seconds_per_step"] * (1 - written["data_wait"])
        assert found.stages[0].compute == pytest.approx(seconds)
        assert json.loads(json.dumps(to_json(found)))["gpus"] == 1

    def test_another_device_is_refused(self, file, tiny):
        _, _, path = file
        path.write_text(json.dumps(_plain(measured(SMALL))))
        with pytest.raises(ConfigError, match=r"measured on 'cpu', the plan is for\s+'H200'"):
            estimate(tiny(), Cluster(price=1, gpu="H200", calibration=(path,)))

    def test_precision_must_be_the_same(self, file, tiny):
        _, _, path = file
        path.write_text(json.dumps(_plain(measured(SMALL))))
        with pytest.raises(ConfigError, match="known for float32"):
            estimate(tiny(precision="bfloat16"), Cluster(price=1, gpus=1, calibration=(path,)))

    def test_missing_fields_are_named(self, tmp_path):
        path, content = tmp_path / "bench.json", _plain(measured(SMALL))
        del content["head_share"], content["work"]["logits"]
        path.write_text(json.dumps(content))
        with pytest.raises(
            ConfigError, match=r"bench\.json.*work\.logits.*head_share|head_share.*l"
        ):
            load_calibration([path])

    @pytest.mark.parametrize("text", ["", "images per second  12", "[1]"])
    def test_not_json(self, tmp_path, text):
        (tmp_path / "bench.json").write_text(text)
        with pytest.raises(ConfigError, match=r"bench\.json") as caught:
            load_calibration([tmp_path / "bench.json"])
        assert caught.value.code == "CONFIG-02"

    def test_no_file(self, tmp_path):
        with pytest.raises(ConfigError, match="missing"):
            load_calibration([tmp_path / "missing.json"])


def test_parts_are_parts(tiny, monkeypatch, memory_slices):
    monkeypatch.setattr(pretrain.bench, "open_slices", lambda _config: memory_slices)
    monkeypatch.setattr(pretrain.bench, "check_overlap", lambda *_arguments: None)
    found = bench(tiny(), steps=3)
    assert found.views_share > 0
    assert found.update_share > 0
    assert found.views_share + found.update_share + found.head_share < 1


def _plain(row):
    from dataclasses import asdict

    return asdict(row)
