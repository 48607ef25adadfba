from __future__ import annotations

import json
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pretrain.bench
from core_mri.config import save_config
from core_mri.errors import ConfigError
from core_mri.models import create_model
from pretrain.bench import WARMUP, bench
from pretrain.cli import main
from pretrain.flops import encoder_flops, head_flops, step_flops
from pretrain.hardware import peak_of
from pretrain.objectives import Batch
from pretrain.student_teacher import StudentTeacher


def linear_flops(x, weight, *_rest, **_named):
    return 2 * x.numel() * weight[0]


def counted(run):
    """What torch itself counts, with the products of `pretrain.linear` it does not know."""
    own = {torch.ops.mkldnn._linear_pointwise: linear_flops}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        run()
    return counter.get_total_flops()


def step_of(config):
    model = StudentTeacher(config).train()
    masks = torch.from_numpy(model.sample_masks(range(config.batch_size)))
    views = config.views
    batch = Batch(
        torch.rand(config.batch_size, 2, 1, views.global_size, views.global_size),
        torch.rand(config.batch_size, views.num_local, 1, views.local_size, views.local_size),
        masks,
    )
    now = {name: float(values[0]) for name, values in model.schedules().items()}
    return model, lambda: model(batch, now)["loss"].backward()


@pytest.fixture
def all_masked(tiny):
    """Every view masked by the same number of patches, so that what is expected is what happens."""

    def make(**changes):
        objective = {"num_prototypes": 512, "head_hidden": 256} | changes.pop("objective", {})
        return tiny(
            masking={"probability": 1.0, "ratio": [0.5, 0.5], "min_block": 1},
            objective=objective,
            **changes,
        )

    return make


class TestFlops:
    def test_encoder_is_what_torch_counts(self):
        encoder = create_model("vit_micro_patch8").eval()
        with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            found = counted(lambda: encoder(torch.rand(1, 1, 64, 64)))
        assert sum(encoder_flops(encoder.config, 64)) == found

    def test_head_is_what_torch_counts(self, tiny):
        config = tiny()
        model = StudentTeacher(config)
        found = counted(lambda: model.teacher["dino"](torch.rand(3, 128)))
        assert 3 * head_flops(config.objective, 128) == found

    @pytest.mark.parametrize("gram_weight", [0.0, 1.0])
    def test_step_is_at_most_what_the_formula_says(self, all_masked, gram_weight):
        """The step saves half of the last block and the gradient of the images."""
        config = all_masked(objective={"gram_weight": gram_weight})
        _, run = step_of(config)
        flops = step_flops(config)
        assert flops.kept == flops.nominal
        assert 0.8 < counted(run) / flops.nominal <= 1

    def test_dropped_branches_are_not_counted(self, all_masked):
        config = all_masked(drop_path=0.5)
        _, run = step_of(config)
        flops = step_flops(config)
        assert flops.kept < 0.75 * flops.nominal
        assert 0.8 < counted(run) / flops.kept <= 1

    def test_unknown_devices_are_measured(self):
        peak = peak_of(torch.device("cpu"), "float32")
        assert peak.flops_per_second > 1e8
        assert peak.source.startswith("measured here")

    @pytest.mark.parametrize(
        ("name", "flops"),
        [
            ("NVIDIA H200", 989e12),
            ("NVIDIA H100 80GB HBM3", 989e12),
            ("NVIDIA H100 PCIe", 756e12),
            ("NVIDIA A100-SXM4-80GB", 312e12),
            ("NVIDIA L40S", 362e12),
        ],
    )
    def test_known_ones_are_looked_up(self, monkeypatch, name, flops):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
        peak = peak_of(torch.device("cuda"), "bfloat16")
        assert peak == (flops, f"data sheet of {name}")


@pytest.mark.usefixtures("measured")
class TestBench:
    @pytest.fixture
    def measured(self, monkeypatch, memory_slices):
        monkeypatch.setattr(pretrain.bench, "open_slices", lambda _config: memory_slices)
        monkeypatch.setattr(pretrain.bench, "check_overlap", lambda *_arguments: None)

    def test_numbers_fit_together(self, tiny):
        config = tiny()
        found = bench(config, steps=4)
        assert found.images_per_second == pytest.approx(8 / found.seconds_per_step)
        assert found.mfu == pytest.approx(
            found.flops_per_step / found.seconds_per_step / found.peak_flops
        )
        assert 0 < found.head_share < 1
        assert 0 <= found.data_wait < 1
        assert found.memory_gib > 0
        assert found.loss > 0
        assert not config.out.exists()

    def test_waiting_for_slices_shows(self, tiny, monkeypatch):
        slow = pretrain.train.Trainer._next

        def wait(trainer, step):
            pretrain.bench.time.sleep(0.3)
            return slow(trainer, step)

        monkeypatch.setattr(pretrain.train.Trainer, "_next", wait)
        found = bench(tiny(), steps=3)
        assert found.data_wait * found.seconds_per_step == pytest.approx(0.3, rel=0.2)

    def test_runs_longer_than_configured_runs_do(self, tiny):
        config = tiny(steps=2)
        assert bench(config, steps=1).steps == 1
        assert config.steps < WARMUP + 1

    def test_large_heads_take_their_share(self, tiny):
        """In seconds of this process: others may run meanwhile."""
        many = tiny(objective={"num_prototypes": 65536})
        small, large = (
            bench(config, steps=3, clock=time.process_time).head_share for config in (tiny(), many)
        )
        assert large > 2 * small
        assert large < 1


class TestCommand:
    def test_prints_what_it_measured(self, tiny, registry, tmp_path, capsys):
        config = tiny(registry=str(registry))
        save_config(config, tmp_path / "config.yaml")
        words = ["bench", str(tmp_path / "config.yaml"), "--measured-steps", "2"]
        assert main(words) == 0
        text = capsys.readouterr().out
        assert "images per second" in text
        assert "measured here" in text
        assert main([*words, "--json", "--batch-size", "4"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["steps"], found["batch_size"], found["device"]) == (2, 4, "cpu")
        assert not config.out.exists()

    def test_no_steps_are_refused(self, tiny, tmp_path):
        save_config(tiny(), tmp_path / "config.yaml")
        with pytest.raises(ConfigError, match="measured-steps"):
            main(["bench", str(tmp_path / "config.yaml"), "--measured-steps", "0"])
