from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pretrain.bench
import pretrain.dry_run
import pretrain.train
from core_mri.errors import RunError
from pretrain.memory import advises_batch, smaller_part

TESTS = Path(__file__).parent
STARVED = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from conftest import MemorySlices, tiny_config
from core_mri.errors import RunError
from pretrain.train import Trainer
trainer = Trainer(
    tiny_config(Path("."), batch_size=48, objective={"num_prototypes": 200_000}), MemorySlices()
)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.getrlimit(resource.RLIMIT_AS)[1]))
try:
    trainer.step(0)
except RunError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by RLIMIT_AS and /proc")
def test_a_step_without_memory_says_which_batch_to_try():
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(TESTS)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(
        "RUN-04: out of memory with 48 slices at once on each of 1 worker(s): "
    )
    assert "Try --micro-batch 24" in done.stdout


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_each_kind_of_it_is_known(tiny, error):
    with pytest.raises(RunError, match="RUN-04") as caught, advises_batch(tiny(), 1):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_pass(tiny):
    with pytest.raises(RuntimeError, match="shapes differ"), advises_batch(tiny(), 1):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    ("batch_size", "micro", "workers", "expected"),
    [
        (48, 0, 1, (48, 24)),
        (24, 0, 2, (12, 4)),
        (24, 0, 1, (24, 12)),
        (4, 0, 1, (4, 0)),
        (48, 16, 1, (16, 8)),
        (20, 0, 2, (12, 4)),
    ],
)
def test_next_part_holds_whole_groups(tiny, batch_size, micro, workers, expected):
    assert smaller_part(tiny(batch_size=batch_size, micro_batch=micro), workers) == expected


def test_smallest_batch_names_other_ways(tiny):
    with pytest.raises(RunError, match="koleo_group allows"), advises_batch(tiny(batch_size=4), 1):
        raise MemoryError


@pytest.mark.parametrize("verb", ["run", "dry_run", "bench"])
def test_no_memory_for_the_model_itself(tiny, in_memory, monkeypatch, verb):
    """Not a step but the building of the network fails: the same advice, wherever it happens."""

    def starved(_config):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate")

    for module in (pretrain.dry_run, pretrain.bench):
        monkeypatch.setattr(module, "open_slices", lambda _config: in_memory)
        monkeypatch.setattr(module, "check_overlap", lambda *_arguments: "not checked")
    monkeypatch.setattr(pretrain.dry_run, "open_validation", lambda _config: None)
    monkeypatch.setattr(pretrain.train, "create_objective", starved)
    do = {
        "run": pretrain.train.train,
        "dry_run": pretrain.dry_run.dry_run,
        "bench": lambda config: pretrain.bench.bench(config, 1),
    }[verb]
    with pytest.raises(RunError, match="RUN-04") as caught:
        do(tiny())
    assert "Try --micro-batch 4" in str(caught.value)
