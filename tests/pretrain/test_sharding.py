"""Two workers of gloo that divide the networks (FSDP2), against one that has all of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import core_mri
import pretrain.report
import pretrain.sharding
from core_mri.checkpoints import Checkpoints
from core_mri.config import to_mapping
from core_mri.models.registry import MODELS
from core_mri.training.sharding import local, whole
from pretrain.memory_need import memory_need, traffic
from pretrain.sharding import whole_state
from pretrain.train import Trainer
from tests.pretrain.conftest import in_memory_worker
from tests.workers import run_workers

ONE_VIEW = {"views": {"num_global": 1, "num_local": 0}}
ANCHOR = {"centering": "softmax", "gram_weight": 2.0, "gram_start": 1, "gram_refresh": 2}
LATER = (
    {"steps": 2, "global_size": 48, "local_size": 24, "batch_size": 8},
    {"steps": 1, "global_size": 64, "local_size": 32},
)


def small(part):
    """Sizes of the small transformer of an objective."""
    return {f"{part}_dim": 64, f"{part}_depth": 2, f"{part}_heads": 2}


def arrays(state):
    return {name: value.numpy() for name, value in whole_state(state).items()}


def trained(config, slices, steps=4):
    """Numbers of steps, then all tensors, and what this worker holds of each kind."""
    trainer = Trainer(config, slices)
    numbers = [dict(trainer.step(step)) for step in range(steps)]
    student, moments = trainer.model.student, trainer.optimization.adamw.state.values()
    kinds = {
        "weights": student.parameters(),
        "gradients": [p.grad for p in student.parameters() if p.grad is not None],
        "moments": [state[name] for state in moments for name in ("exp_avg", "exp_avg_sq")],
        "teacher": trainer.model.teacher_encoder.parameters(),
    }
    held = {
        kind: (sum(local(t).numel() for t in tensors), sum(t.numel() for t in tensors))
        for kind, tensors in ((kind, list(tensors)) for kind, tensors in kinds.items())
    }
    return numbers, arrays(trainer.model.state_dict()), held


def check_equal(one, two, rtol=1e-5):
    """Weights too, to a fiftieth of the learning rate, which is what a step may change."""
    for expected, found in zip(one[0], two[0], strict=True):
        for name in ("loss", "dino", "ibot", "koleo", "gram", "ijepa", "mae"):
            if name in expected:
                assert found[name] == pytest.approx(expected[name], rel=rtol), name
        for name in (name for name in expected if "norm" in name):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    assert set(one[1]) == set(two[1])
    for name, value in one[1].items():
        found = two[1][name]
        if name.endswith(
            "qkv.bias"
        ):  # softmax does not see that of keys: Adam makes rounding large
            value, found = (np.delete(x.reshape(3, -1), 1, 0) for x in (value, found))
        np.testing.assert_allclose(found, value, atol=2e-5, err_msg=name)


class TestLikeOne:
    @pytest.mark.parametrize(
        "changes",
        [
            {"drop_path": 0.3, "layer_scale": 0.1, "micro_batch": 4},
            {"objective": ANCHOR},
            {"objective": {"name": "mae"}, **ONE_VIEW, "mae": small("decoder")},
            {"objective": {"name": "ijepa"}, **ONE_VIEW, "ijepa": small("predictor")},
        ],
        ids=["parts", "gram", "mae", "ijepa"],
    )
    def test_losses_and_weights(self, tiny, only_losses, tmp_path, changes):
        config = tiny(batch_size=16, sharding="fsdp", **changes)
        one = trained(config, only_losses)
        assert all(own == total for own, total in one[2].values())
        for two in run_workers(trained, tmp_path / "two", config, only_losses):
            check_equal(one, two)
            for kind, (own, total) in two[2].items():
                if kind != "teacher" or config.objective.name != "mae":  # which has none
                    assert own == pytest.approx(total / 2, rel=0.02), kind

    def test_stages(self, tiny, only_losses, tmp_path):
        config = tiny(batch_size=16, sharding="fsdp", stages=LATER, steps=5)
        one = trained(config, only_losses, 5)
        two = run_workers(trained, tmp_path / "two", config, only_losses, 5)[0]
        check_equal(one, two)
        assert two[1]["student.encoder.vit.pos_embed"].shape[1] == 1 + 64

    def test_bfloat16_is_that_of_autocast(self, tiny, only_losses, tmp_path):
        config = tiny(batch_size=16, precision="bfloat16", drop_path=0.3, layer_scale=0.1)
        one = trained(config, only_losses, 2)
        two = run_workers(
            trained, tmp_path / "two", replace(config, sharding="fsdp"), only_losses, 2
        )[0]
        for expected, found in zip(one[0], two[0], strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
            assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-2)

    @pytest.mark.slow
    def test_compiled_blocks(self, tiny, only_losses, tmp_path):
        config = tiny(batch_size=16, sharding="fsdp", drop_path=0.3, layer_scale=0.1)
        one, two = (
            run_workers(trained, tmp_path / str(c), replace(config, compile=c), only_losses)[0]
            for c in (False, True)
        )
        for expected, found in zip(one[0], two[0], strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)

    def test_auto_begins_with_large_encoders(self, tiny, monkeypatch):
        monkeypatch.setitem(MODELS, "wide", replace(MODELS["vit_large_patch16"], depth=1))
        large = tiny(model="wide", views={"global_size": 32, "local_size": 32})
        assert large.sharded(2)
        assert not large.sharded(1)
        assert not replace(large, sharding="none").sharded(2)
        assert not tiny().sharded(8)
        assert replace(large, model="vit_micro_patch8", sharding="fsdp").sharded(2)


class TestRuns:
    def test_a_lost_run_goes_on_bit_by_bit_and_leaves_weights(self, tiny, tmp_path, memory_slices):
        """Stopped between checkpoints; probes and the report see whole networks."""
        whole_run = tiny(sharding="fsdp", drop_path=0.3)
        whole_run.registry.mkdir()
        broken = replace(whole_run, out=whole_run.out.with_name("broken"))
        run_workers(_whole, tmp_path / "whole", memory_slices, {"config": to_mapping(whole_run)})
        with pytest.raises(mp.ProcessRaisedException, match="lost"):
            run_workers(
                _lost_at, tmp_path / "lost", 3, memory_slices, {"config": to_mapping(broken)}
            )
        assert len(_lines(broken)) == 3
        run_workers(_whole, tmp_path / "again", memory_slices, {"config": to_mapping(broken)})
        one, two = (_lines(config) for config in (whole_run, broken))
        assert [line["loss_hex"] for line in one] == [line["loss_hex"] for line in two]
        assert [line["knn_region"] for line in one if "knn_region" in line]
        ours, theirs = (
            (Checkpoints(config.out / "checkpoints").load() or (0, {}))[1]["model"]
            for config in (whole_run, broken)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        released = core_mri.load_model(broken.out / "weights").state_dict()
        for name, value in released.items():
            assert torch.equal(value, ours[f"teacher.encoder.{name}"]), name
        assert (broken.out / "report.html").exists()

    @pytest.mark.parametrize(
        ("before", "after"),
        [((2, "fsdp"), (1, "none")), ((1, "none"), (2, "fsdp")), ((2, "fsdp"), (2, "none"))],
        ids=["to-one", "from-one", "to-copies"],
    )
    def test_checkpoints_fit_any_sharding(self, tiny, only_losses, tmp_path, before, after):
        config = tiny(batch_size=16)
        expected = trained(config, only_losses)
        for body, (number, sharding) in ((_saved, before), (_continued, after)):
            arguments = (replace(config, sharding=sharding), only_losses, tmp_path / "checkpoints")
            found = run_workers(body, tmp_path / body.__name__, *arguments, num_workers=number)[0]
        numbers, weights, same = found
        assert same
        check_equal((expected[0][2:], expected[1]), (numbers, weights))


def _whole(slices, payload):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.report, "_overlap", lambda _run: "not checked")
        in_memory_worker(slices, payload)


def _lost_at(step, slices, payload):
    original = Trainer.step

    def lost(self, number):
        if number == step:
            raise RuntimeError("lost")
        return original(self, number)

    Trainer.step = lost
    _whole(slices, payload)


def _lines(config):
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def _saved(config, slices, folder):
    trainer = Trainer(config, slices)
    for step in range(2):
        dict(trainer.step(step))
    checkpoints = Checkpoints(folder)
    checkpoints.save(2, trainer.state())
    checkpoints.wait()


def _continued(config, slices, folder):
    trainer = Trainer(config, slices)
    step, state = Checkpoints(folder).load() or (0, {})
    trainer.restore(state)
    model = whole_state(trainer.model.state_dict())
    same = all(torch.equal(model[name], value) for name, value in state["model"].items())
    moments = whole_state(trainer.optimization.adamw.state_dict())["state"]
    for number, of_one in state["optimizer"]["state"].items():
        same &= all(torch.equal(moments[number][name], value) for name, value in of_one.items())
    numbers = [dict(trainer.step(index)) for index in range(step, 4)]
    return numbers, arrays(trainer.model.state_dict()), same


class Sent(TorchDispatchMode):
    """Bytes that a worker hands to each kind of collective operation."""

    def __init__(self):
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.bytes[func.__name__.split(".")[0]] += max(t.nbytes for t in tensors)
        return func(*args, **(kwargs or {}))


def _gradients(config, slices):
    trainer = Trainer(config, slices)
    with Sent() as sent:
        dict(trainer.step(0))
    named = trainer.model.student.named_parameters()
    gradients = {name: whole(p.grad).numpy().copy() for name, p in named if p.grad is not None}
    return gradients, sent.bytes


class TestReduction:
    @pytest.mark.parametrize("sharding", ["none", "fsdp"])
    def test_half_the_bytes_within_rounding(self, tiny, only_losses, tmp_path, sharding):
        """Each worker's gradient is rounded, and so is the sum: 2^-9 of the largest terms twice."""
        config = tiny(batch_size=16, sharding=sharding, health={"every": 6, "probe_every": 0})
        (exact, full), (rounded, half) = (
            run_workers(
                _gradients, tmp_path / kind, replace(config, reduce_dtype=kind), only_losses
            )[0]
            for kind in ("float32", "bfloat16")
        )
        kind = "allreduce_" if sharding == "none" else "_reduce_scatter_base_"
        parameters = memory_need(config, "float32").gradients
        others = 5000 if sharding == "none" else 0  # all-reduces of Sinkhorn-Knopp and the losses
        assert full[kind] == pytest.approx(parameters + others, rel=0.02)
        assert half[kind] - others / 2 == pytest.approx(full[kind] / 2, rel=0.01)
        assert any(not np.array_equal(exact[name], rounded[name]) for name in exact)
        for name, value in exact.items():
            np.testing.assert_allclose(rounded[name], value, rtol=0, atol=2**-7 * abs(value).max())

    @pytest.mark.parametrize("micro_batch", [0, 4])
    def test_the_bill_counts_what_is_sent(self, tiny, only_losses, tmp_path, micro_batch):
        """Tensors of one row are padded to as many rows as there are workers: 3 % here."""
        config = tiny(batch_size=16, sharding="fsdp", micro_batch=micro_batch)
        config = replace(config, health=replace(config.health, probe_every=0))
        _, sent = run_workers(_gradients, tmp_path / "two", config, only_losses)[0]
        found = sent["_allgather_base_"] + sent["_reduce_scatter_base_"]
        assert found == pytest.approx(
            traffic(replace(config, batch_size=8), "float32", 2), rel=0.03
        )


class TestBill:
    def test_networks_are_divided(self, tiny):
        config = tiny(sharding="fsdp", layer_scale=1e-5, objective={"gram_weight": 1.0})
        one, two, eight = (memory_need(config, "float32", n) for n in (1, 2, 8))
        assert two.optimizer == one.optimizer / 2
        assert eight.teacher == one.teacher / 8
        assert two.weights > one.weights / 2
        assert two.activations == one.activations
        assert memory_need(replace(config, sharding="none"), "float32", 8) == one

    def test_bfloat16_halves_the_all_reduce(self, tiny):
        config = tiny()
        parameters = memory_need(config, "float32").gradients / 4
        assert traffic(config, "float32", 4) == 8 * parameters
        assert traffic(replace(config, reduce_dtype="bfloat16"), "float32", 4) == 4 * parameters


class TestOldTorch:
    def test_what_it_cannot_do_is_said(self, tiny, only_losses, tmp_path):
        config = tiny(batch_size=16, sharding="fsdp", precision="bfloat16")
        with pytest.raises(mp.ProcessRaisedException, match=r"RUN-10.*--sharding none"):
            run_workers(_on_old_torch, tmp_path / "two", config, only_losses)


def _on_old_torch(config, slices):
    pretrain.sharding.fields = lambda _policy: ()
    trained(config, slices)
