"""Checkpoints: bit for bit, whole or not there, on any number of workers, on disk or store."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from core_mri.checkpoints import Checkpoints
from core_mri.checkpoints.state import join, split
from core_mri.checkpoints.storage import open_storage
from core_mri.errors import ConfigError, DataError, RunError
from tests.workers import clean_process, run_workers


def make_state(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, generator=generator)
    weight[0, 0], weight[0, 1], weight[0, 2] = math.nan, math.inf, -0.0
    model = torch.nn.Linear(3, 2)
    adam = torch.optim.AdamW(model.parameters())
    model(weight[1:]).sum().backward()
    adam.step()
    return {
        "model": OrderedDict(weight=weight, half=weight.bfloat16(), empty=torch.empty(0, 4)),
        "optimizer": adam.state_dict(),
        "flags": [True, None, 3, -0.0, 0.1 + 0.2, math.nan, "text"],
        "pair": (1, (torch.tensor(7), torch.tensor([True, False]))),
        "strided": weight.T,
        "twice": [weight, weight],
    }


def same(left: Any, right: Any) -> bool:
    """Equal in structure and in every bit."""
    if isinstance(left, torch.Tensor):
        if left.dtype != right.dtype or left.shape != right.shape:
            return False
        bits = (each.contiguous().flatten().view(torch.uint8) for each in (left, right))
        return torch.equal(*bits)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and all(
            same(*pair) for pair in zip(left, right, strict=True)
        )
    if isinstance(left, float):
        return left.hex() == right.hex()
    return left == right and type(left) is type(right)


class TestState:
    def test_comes_back_bit_for_bit_through_json(self) -> None:
        state = make_state()
        tree, tensors = split(state)
        assert same(state, join(json.loads(json.dumps(tree)), tensors))

    def test_what_cannot_be_held_is_named(self) -> None:
        with pytest.raises(TypeError, match="set at /a/1"):
            split({"a": [1, {2}]})


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An object store on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        import fsspec

        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(params=["folder", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "checkpoints")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


class TestKeeping:
    def test_none_at_the_start(self, place: str) -> None:
        assert Checkpoints(place).load() is None

    def test_newest_comes_back_bit_for_bit_and_old_ones_go(self, place: str) -> None:
        checkpoints = Checkpoints(place)
        for step in (9, 10, 11):
            checkpoints.save(step, make_state(step))
        found = Checkpoints(place).load()
        assert found is None or found[0] < 11 or same(found[1], make_state(11))
        checkpoints.wait()
        step, state = Checkpoints(place).load() or (0, {})
        assert step == 11
        assert same(make_state(11), state)
        folders = {name.partition("/")[0] for name in open_storage(place).files()}
        assert sorted(name[:13] for name in folders - {"owner.json"}) == [
            "step_00000010", "step_00000011",
        ]  # fmt: skip

    def test_what_is_saved_is_what_was_at_the_call(self, place: str) -> None:
        weight = torch.zeros(1000)
        checkpoints = Checkpoints(place)
        checkpoints.save(1, {"weight": weight})
        weight += 1
        checkpoints.wait()
        assert (checkpoints.load() or (0, {}))[1]["weight"].sum() == 0

    def test_a_damaged_one_gives_way_and_is_said(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        checkpoints = Checkpoints(tmp_path, background=False)
        for step in (1, 2):
            checkpoints.save(step, {"x": torch.full((4,), float(step))})
        (newest,) = tmp_path.glob("step_00000002-*/*.safetensors")
        damaged = bytearray(newest.read_bytes())
        damaged[-1] ^= 1
        newest.write_bytes(bytes(damaged))
        again = Checkpoints(tmp_path, background=False)
        step, state = again.load() or (0, {})
        assert (step, state["x"].tolist()) == (1, [1.0] * 4)
        assert "step_00000002" in caplog.text
        assert "damaged" in caplog.text
        again.save(2, {"x": torch.zeros(4)})  # the damaged one is superseded
        assert len(list(tmp_path.glob("step_00000002-*"))) == 1
        assert (Checkpoints(tmp_path).load() or (0, {}))[1]["x"].tolist() == [0.0] * 4

    def test_none_whole_is_an_error(self, tmp_path: Path) -> None:
        Checkpoints(tmp_path, background=False).save(1, {"x": 1})
        next(tmp_path.glob("step_*/state.json")).unlink()
        with pytest.raises(RunError, match="none of 1") as caught:
            Checkpoints(tmp_path).load()
        assert caught.value.code == "RUN-03"

    def test_two_runs_of_one_place_notice(self, place: str) -> None:
        first, second = (Checkpoints(place, background=False) for _ in range(2))
        first.save(1, {"x": 1})
        second.save(1, {"x": 1})
        with pytest.raises(RunError, match="another run") as caught:
            first.save(2, {"x": 1})
        assert caught.value.code == "RUN-09"
        second.save(2, {"x": 2})
        assert Checkpoints(place).load() == (2, {"x": 2})

    @pytest.mark.usefixtures("bucket")
    def test_a_store_that_does_not_answer_is_named(self) -> None:
        with pytest.raises(DataError, match="s3://no-such-bucket/run") as caught:
            Checkpoints("s3://no-such-bucket/run", background=False).save(1, {"x": 1})
        assert caught.value.code == "DATA-07"
        with pytest.raises(ConfigError, match="nonsense"):
            Checkpoints("nonsense://x")


def _limited_disk(folder: Path) -> None:
    """Body of a process whose files may hold 64 KiB: as a full disk."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, {"x": torch.ones(10)})
    checkpoints.wait()
    sys.dont_write_bytecode = True  # half a .pyc file would break every later import of its module
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    checkpoints.save(2, {"x": torch.ones(1 << 16)})
    with pytest.raises(DataError, match=str(folder)) as caught:
        checkpoints.wait()
    sys.exit(7 if caught.value.code == "DATA-07" else 1)


def test_a_full_disk_keeps_the_one_before(tmp_path: Path) -> None:
    process = clean_process(_limited_disk, tmp_path)
    process.start()
    process.join()
    assert process.exitcode == 7
    step, state = Checkpoints(tmp_path).load() or (0, {})
    assert (step, state["x"].sum()) == (1, 10)
    assert len(list(tmp_path.glob("step_*"))) == 1


def _dies_at(folder: Path, number: int) -> None:
    """Save 3 checkpoints, and be killed at the change of the disk with this number."""
    count = 0

    def counting(change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return counted

    Path.replace = counting(Path.replace)  # type: ignore[method-assign]
    os.fsync = counting(os.fsync)
    os.unlink = counting(os.unlink)
    checkpoints = Checkpoints(folder, keep=1, background=False)
    for step in (1, 2, 3):
        checkpoints.save(step, {"x": torch.full((3,), float(step))})
        (folder / "done").write_text(str(step))


def test_killed_at_any_change_of_the_disk_it_loses_at_most_one(tmp_path: Path) -> None:
    for number in range(1, 200):
        folder = tmp_path / str(number)
        process = clean_process(_dies_at, folder, number)
        process.start()
        process.join()
        done = folder / "done"
        finished = int(done.read_text()) if done.exists() else 0
        step, state = Checkpoints(folder).load() or (0, {})
        assert finished <= step <= finished + 1
        assert step == 0 or state["x"].tolist() == [float(step)] * 3
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert number > 30


def save_replicated_and_sharded(folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = torch.arange(35.0).view(7, 5)
    state = {
        "plain": make_state(3)["model"],
        "rows": distribute_tensor(whole, mesh, [Shard(0)]),
        "columns": distribute_tensor(whole, mesh, [Shard(1)]),
        "copies": distribute_tensor(whole, mesh, [Replicate()]),
        "one": distribute_tensor(torch.ones(1), mesh, [Shard(0)]),
    }
    checkpoints = Checkpoints(folder)
    checkpoints.save(5, state)
    checkpoints.wait()
    dist.barrier()
    check_loaded(folder)


def check_loaded(folder: Path) -> None:
    step, state = Checkpoints(folder).load() or (0, {})
    whole = torch.arange(35.0).view(7, 5)
    assert step == 5
    assert same(make_state(3)["model"], state["plain"])
    assert all(torch.equal(state[name], whole) for name in ("rows", "columns", "copies"))
    assert state["one"].tolist() == [1.0]


def test_two_workers_share_the_writing_and_any_number_reads(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    run_workers(save_replicated_and_sharded, tmp_path, folder)
    check_loaded(folder)
    sizes = [path.stat().st_size for path in folder.glob("step_*/*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) < 2 * min(sizes)


def take_over_apart(folder: Path) -> None:
    checkpoints = Checkpoints(folder / str(dist.get_rank()), patience_s=1)
    with pytest.raises(RunError, match=r"worker\(s\) 1") as caught:
        checkpoints.take_over()
    assert caught.value.code == "RUN-08"


def save_apart(folder: Path) -> None:
    place = folder / str(dist.get_rank())
    checkpoints = Checkpoints(place, patience_s=1)
    checkpoints.save(1, {"x": torch.ones(3)})
    if dist.get_rank() == 0:
        with pytest.raises(RunError, match="rank_00001") as caught:
            checkpoints.wait()
        assert caught.value.code == "RUN-08"
    checkpoints.wait()


@pytest.mark.slow
def test_storage_that_is_not_shared_is_said(tmp_path: Path) -> None:
    run_workers(save_apart, tmp_path, tmp_path / "apart")
    run_workers(take_over_apart, tmp_path, tmp_path / "over")
