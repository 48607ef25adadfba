"""The simulator against the arithmetic of published and derived figures, and against torch.

Rows marked "derived" are those of this project's research notes on pretraining, sections 5 and 10:
arithmetic by another hand from 790 TFLOP/s for products on an H200, two operations for a
multiplication with addition, student three times, teacher once, both heads with 65,536 prototypes.
They count patches of three channels where ours have one, 0.2 to 0.8 % of all, and 59 masked patches
at every size; tolerances are that and the rounding of the printed digits.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from core_mri.config import load_config, save_config
from core_mri.errors import ConfigError
from core_mri.models.registry import MODELS
from pretrain.cli import main
from pretrain.cluster import Cluster
from pretrain.config import CONFIGS, PretrainConfig
from pretrain.cost import PEER_MFU, bandwidth_ceiling, estimate, ring_seconds
from pretrain.flops import head_parameters, step_flops, step_work, student_tokens
from pretrain.hardware import GPUS
from pretrain.memory_need import block_activations, largest_batch, memory_need
from pretrain.objectives import Batch
from pretrain.student_teacher import StudentTeacher

PEAK = 790
BASE = load_config(PretrainConfig, CONFIGS / "base_8gpu.yaml")


def config(model="vit_base_patch16", sides=(224, 96), drop_path=0.0, **changes):
    views = replace(BASE.views, global_size=sides[0], local_size=sides[1])
    changes = {"loader_workers": 1000} | changes
    return replace(BASE, model=model, views=views, drop_path=drop_path, **changes)


def cluster(**changes):
    """One H200 that nothing but its products holds up."""
    free = {"storage_mb_s": 1e6, "cores": 1000, "gpus": 1, "price": 3.0, "mfu": 0.5}
    return Cluster(**(free | {"gpu": "H200", "peak_tflops": PEAK} | changes))


@pytest.fixture
def patch14(monkeypatch):
    for size in ("base", "large"):
        sizes = replace(MODELS[f"vit_{size}_patch16"], patch_size=14)
        monkeypatch.setitem(MODELS, f"vit_{size}_patch14", sizes)


class TestOperations:
    @pytest.mark.usefixtures("patch14")
    @pytest.mark.parametrize(
        ("model", "sides", "tera", "rate", "dropped"),
        [
            ("vit_small_patch16", (224, 96), 0.124, 3178, 4110),
            ("vit_base_patch16", (224, 96), 0.446, 885, 1171),
            ("vit_base_patch14", (224, 98), 0.593, 666, None),
            ("vit_large_patch16", (224, 96), 1.538, 257, 342),
            ("vit_large_patch14", (224, 98), 2.044, 193, None),
            ("vit_base_patch16", (512, 112), 1.978, 200, None),
            ("vit_large_patch16", (512, 112), 6.584, 60, None),
        ],
    )
    def test_derived_ceilings(self, model, sides, tera, rate, dropped):
        """Section 5: TFLOP for an image; images/s at half of 790 TFLOP/s, then with drop path."""
        run = config(model, sides, batch_size=8)
        assert step_flops(run).nominal / 8e12 == pytest.approx(tera, rel=0.01)
        assert estimate(run, cluster()).images_per_second == pytest.approx(rate, rel=0.01)
        if dropped:
            found = estimate(replace(run, drop_path=0.3), cluster()).images_per_second
            assert found == pytest.approx(dropped, rel=0.01)

    @pytest.mark.parametrize(
        ("model", "sides", "millions", "slow", "fast"),
        [
            ("vit_base_patch16", (224, 96), 6, 2.4, 1.9),
            ("vit_base_patch16", (224, 96), 128, 50, 40),
            ("vit_base_patch16", (224, 96), 256, 100, 80),
            ("vit_base_patch16", (512, 112), 10, 17, 14),
            ("vit_large_patch16", (224, 96), 128, 173, 138),
        ],
    )
    def test_derived_hours(self, model, sides, millions, slow, fast):
        """Section 10: hours on one H200 at 40 and 50 % of 790 TFLOP/s."""
        run = config(model, sides, batch_size=8)
        for mfu, hours in ((0.4, slow), (0.5, fast)):
            found = estimate(run, cluster(mfu=mfu, slices=millions * 1_000_000))
            assert found.hours == pytest.approx(hours, abs=0.5 if hours > 10 else 0.06)
            assert found.gpu_hours == found.hours
            assert found.money == pytest.approx(3 * found.hours)

    def test_bandwidth_ceiling(self):
        """Section 5: element-wise traffic holds eager forward at 74 %, at 4.3 TB/s."""
        gpu = replace(GPUS["H200"], peak=PEAK * 1e12, bandwidth=4.3e12)
        assert bandwidth_ceiling(config(), gpu) == pytest.approx(0.74, abs=0.005)
        found = estimate(config(batch_size=8), cluster(mfu=1.0, bandwidth_gb_s=4300))
        assert found.images_per_second == pytest.approx(0.74 * 1770, rel=0.01)

    def test_without_a_measurement_the_peer_is_named(self):
        found = estimate(config(batch_size=8), cluster(mfu=None, peak_tflops=None))
        expected = 8 * PEER_MFU * 989e12 / step_flops(config(batch_size=8)).nominal
        assert found.images_per_second == pytest.approx(expected)
        assert any("DINOv3" in text and "never measured" in text for text in found.assumptions)


class TestFeed:
    def test_cores_of_a_small_model(self):
        """Section 10: 16 cores of 113 slices/s hold a ViT-S at 57 % of 3,178 images/s."""
        run = config("vit_small_patch16", batch_size=8)
        found = estimate(run, cluster(cores=16, slices_per_core=113.0))
        assert found.stages[0].bottleneck == "data loading"
        assert found.images_per_second / 3178 == pytest.approx(0.57, abs=0.005)

    def test_cores_of_a_base_model(self):
        """Section 10: 885 images/s take 7.8 such cores, so 8 are enough and 7 are not."""
        run = config(batch_size=8)
        told = [
            estimate(run, cluster(cores=cores, slices_per_core=113.0)).stages[0].bottleneck
            for cores in (7, 8)
        ]
        assert told == ["data loading", "compute"]

    def test_no_more_cores_read_than_loader_workers(self):
        for workers, seconds in ((4, 2.0), (16, 1.0)):
            run = config(batch_size=8, loader_workers=workers)
            found = estimate(run, cluster(cores=8, slices_per_core=1.0)).stages[0]
            assert found.seconds == found.loading == seconds

    def test_without_loader_workers_nothing_is_read_ahead(self):
        run = config(batch_size=8, loader_workers=0)
        found = estimate(run, cluster(slices_per_core=8.0)).stages[0]
        assert found.loading == 1.0
        assert found.seconds == pytest.approx(found.compute + 1.0)

    def test_bytes_of_a_node(self):
        """Section 10: 885 images/s of 102 kB on each of 8 GPUs are 0.72 GB/s."""
        run = config(batch_size=64)
        for megabytes, bottleneck in ((710, "storage"), (730, "compute")):
            wanted = cluster(gpus=8, slice_kb=102.0, storage_mb_s=megabytes)
            assert estimate(run, wanted).stages[0].bottleneck == bottleneck

    def test_nodes_have_storage_each(self):
        run = config(batch_size=128)
        one, two = (
            estimate(run, cluster(gpus=gpus, storage_mb_s=100, network_gbit_s=1e5))
            for gpus in (8, 16)
        )
        assert two.images_per_second == pytest.approx(2 * one.images_per_second)

    def test_adjacent_slices_are_read_too(self):
        run = config(batch_size=8)
        near = replace(run, views=replace(run.views, adjacent_slices=2))
        once, twice = (estimate(c, cluster(storage_mb_s=10)) for c in (run, near))
        assert once.images_per_second == pytest.approx(2 * twice.images_per_second)


class TestNetwork:
    def test_derived_all_reduce(self):
        """Section 10: 528 MB take 21 ms on 400 Gb/s and 340 ms on 25 Gb/s, for many workers."""
        many = 1000
        assert ring_seconds(528e6, many, 400e9 / 8) == pytest.approx(0.021, abs=0.0005)
        assert ring_seconds(528e6, many, 25e9 / 8) == pytest.approx(0.340, rel=0.01)
        assert ring_seconds(528e6, 2, 1e9) == 0.528
        assert ring_seconds(528e6, 1, 1e9) == 0

    def test_hidden_behind_backward_or_not(self):
        """Section 10: with a step of 145 ms the first is hidden, the second is not."""
        run = config(batch_size=128 * 16)
        fast, slow = (
            estimate(run, cluster(gpus=16, network_gbit_s=gbit)).stages[0] for gbit in (400, 25)
        )
        assert fast.compute == pytest.approx(0.145, rel=0.01)
        assert fast.visible_all_reduce == 0
        assert fast.scaling == 1
        assert slow.visible_all_reduce == pytest.approx(slow.all_reduce - slow.compute / 2)
        assert slow.bottleneck == "network"
        assert slow.scaling == pytest.approx(slow.compute / slow.seconds)

    def test_one_node_uses_its_own_links(self):
        found = estimate(config(batch_size=64), cluster(gpus=8, network_gbit_s=0.001)).stages[0]
        assert found.all_reduce == pytest.approx(2 * 7 / 8 * 528e6 / 450e9, rel=0.01)


class TestMemory:
    def test_parameters_are_torchs(self, tiny):
        for changes in ({}, {"layer_scale": 1e-5, "num_registers": 2}):
            run = tiny(**changes)
            student = StudentTeacher(run).student
            parameters = sum(p.numel() for p in student.parameters())
            assert step_work(run, attention_matrix=True).parameters == parameters

    def test_derived_sizes(self):
        """Section 10: ViT-B with two heads of 65,536 has 132 M parameters, a checkpoint 2.1 GB."""
        need = memory_need(config(batch_size=8), "bfloat16")
        assert need.gradients == pytest.approx(528e6, rel=0.005)
        weights = need.gradients  # float32 too
        assert weights + need.optimizer + need.teacher == pytest.approx(2.1e9, rel=0.01)
        assert head_parameters(config()) == pytest.approx(46.1e6, rel=0.002)

    def test_activations_are_what_torch_keeps(self, tiny):
        """On a processor, where attention keeps its matrix and scaled queries besides."""
        run = tiny(model="vit_tiny_patch8", views={"global_size": 96, "local_size": 48})
        model = StudentTeacher(run).train()
        sizes: dict[int, int] = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if not isinstance(tensor, torch.nn.Parameter):
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        masks = torch.from_numpy(model.sample_masks(range(run.batch_size)))
        batch = Batch(
            torch.rand(run.batch_size, 2, 1, 96, 96),
            torch.rand(run.batch_size, 2, 1, 48, 48),
            masks,
        )
        now = {name: float(values[0]) for name, values in model.schedules().items()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(batch, now)["loss"]
        encoder = MODELS[run.model]
        squares = 2 * (12**2 + 1) ** 2 + 2 * (6**2 + 1) ** 2
        matrices = 4 * run.batch_size * squares * encoder.num_heads * encoder.depth
        assert torch.isfinite(loss)
        kept = sum(sizes.values()) - matrices
        assert kept == pytest.approx(block_activations(run, 4), rel=0.1)

    def test_drop_path_keeps_fewer(self):
        full, dropped = (block_activations(config(drop_path=d), 2) for d in (0.0, 0.3))
        assert dropped == pytest.approx(0.7 * full)
        tokens = 2 * 197 + 8 * 37
        assert student_tokens(config()) == tokens
        assert full == 1024 * tokens * 12 * 768 * 38

    def test_largest_batch_fits_and_the_next_does_not(self):
        run = config()
        groups = largest_batch(run, "bfloat16", 80e9) // 8
        fits, not_ = (
            memory_need(replace(run, batch_size=8 * n), "bfloat16") for n in (groups, groups + 1)
        )
        assert fits.total <= 72e9 < not_.total

    def test_what_does_not_fit_says_what_does(self):
        with pytest.raises(ConfigError, match=r"largest batch_size that fits is (\d+)") as caught:
            estimate(config("vit_large_patch16"), cluster(gpu="L4", gpus=8))
        fitting = int(caught.value.fix.split()[-1].rstrip("."))
        assert fitting % 64 == 0
        run = config("vit_large_patch16", batch_size=fitting)
        assert estimate(run, cluster(gpu="L4", gpus=8)).stages[0].largest_batch == fitting

    def test_not_one_group(self):
        with pytest.raises(ConfigError, match="Not even one KoLeo group"):
            estimate(config(), cluster(memory_gb=2.0))


class TestStages:
    def test_each_has_its_own_step(self):
        views = {"global_size": 448, "local_size": 112}
        stages = ({"steps": 1000, "batch_size": 32} | views,)
        run = load_config(PretrainConfig, _plain(config(batch_size=64)) | {"stages": stages})
        found = estimate(run, cluster())
        first, last = found.stages
        assert (first.steps, last.steps) == (124_000, 1000)
        assert last.seconds / last.batch_size > 3 * first.seconds / first.batch_size
        assert found.hours == pytest.approx(first.hours + last.hours)
        assert found.images == 124_000 * 64 + 1000 * 32
        with pytest.raises(ConfigError, match="stages"):
            estimate(run, cluster(slices=10**6))


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"gpus": 0}, "gpus must be at least 1, got 0"),
            ({"price": -1.0}, "price must not be negative"),
            ({"mfu": 1.5}, "part of the peak"),
            ({"storage_mb_s": 0.0}, "storage_mb_s must be positive"),
            ({"gpus": 12}, "no whole nodes"),
            ({"gpu": "B999"}, "choose one of H200 NVL"),
            ({"gpu": "", "peak_tflops": None}, "no GPU is named"),
            ({"slices": 512}, "larger than the data"),
            ({"gpus": 4096}, "do not give 4096 worker"),
        ],
    )
    def test_is_refused(self, changes, text):
        with pytest.raises(ConfigError, match=text):
            estimate(config(), cluster(**changes))

    def test_other_objectives(self):
        mae = load_config(PretrainConfig, CONFIGS / "tiny_cpu_mae.yaml")
        with pytest.raises(ConfigError, match="'mae' is not known"):
            estimate(mae, cluster())


class TestCommand:
    def test_prints_a_prediction(self, capsys):
        words = ["cost", "vit_small_patch16", "--gpu", "H200", "--price", "3.5"]
        assert main([*words, "--slices", "10000000", "--epochs", "2"]) == 0
        text = capsys.readouterr().out
        assert "A prediction" in text
        assert "bottleneck" in text
        assert "at 3.5 for a GPU-hour" in text
        assert main([*words, "--json", "--batch-size", "512", "--views.num-local", "0"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["stages"][0]["batch_size"] == 512
        parts = found["stages"][0]["memory"]
        total = parts.pop("total")
        assert total == pytest.approx(sum(parts.values()))
        assert found["money"] == pytest.approx(3.5 * found["gpu_hours"])

    def test_a_configuration_file(self, tiny, tmp_path, capsys):
        save_config(tiny(), tmp_path / "run.yaml")
        words = ["cost", str(tmp_path / "run.yaml"), "--gpu", "L4", "--gpus", "1", "--price", "1"]
        assert main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["images"] == 6 * 8

    def test_price_has_no_default(self, capsys):
        with pytest.raises(SystemExit) as caught:
            main(["cost", "base_8gpu", "--gpu", "H200"])
        assert caught.value.code == 2
        assert "price" in capsys.readouterr().err

    def test_unknown_model(self):
        with pytest.raises(ConfigError, match="vit_huge"):
            main(["cost", "vit_huge", "--gpu", "H200", "--price", "1"])


def _plain(run):
    from core_mri.config import to_mapping

    return to_mapping(run)
