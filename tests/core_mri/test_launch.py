from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from core_mri.errors import ConfigError, DataError, RunError
from core_mri.launch import Workers, launch

ENTRY = """
import json, os
from pathlib import Path

def work(payload):
    from core_mri.devices import rank, world_size
    import torch, torch.distributed as dist
    total = torch.tensor([rank() + 1.0])
    if world_size() > 1:
        dist.all_reduce(total)
    facts = {"pid": os.getpid(), "world": world_size(), "total": total.item()}
    Path(payload["out"], f"rank{rank()}.json").write_text(json.dumps(facts))
    with Path(payload["out"], "lives").open("a") as file:
        file.write("x")
    if payload.get("die_once") and rank() == 1 and not Path(payload["out"], "died").exists():
        Path(payload["out"], "died").touch()
        os._exit(3)
    if payload.get("raise") and rank() == world_size() - 1:
        from core_mri.errors import DataError
        raise DataError("DATA-09", "too few.", fix="Add some.")
    if payload.get("die"):
        os._exit(3)
"""


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "probe_entry.py").write_text(ENTRY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "probe_entry:work"


def reports(folder: Path) -> list[dict[str, float]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


class TestLocal:
    def test_runs_here(self, entry: str, tmp_path: Path) -> None:
        launch(entry, {"out": str(tmp_path)}, storage=tmp_path)
        assert reports(tmp_path) == [{"pid": os.getpid(), "world": 1, "total": 1.0}]

    def test_one_process_is_one_worker(self) -> None:
        with pytest.raises(ConfigError, match="torchrun or ray"):
            Workers(num_workers=2)

    @pytest.mark.parametrize(("num_workers", "min_workers"), [(2, 3), (2, -1)])
    def test_fewest_workers_are_at_most_all(self, num_workers: int, min_workers: int) -> None:
        with pytest.raises(ConfigError, match="between 1 and num_workers"):
            Workers(launcher="ray", num_workers=num_workers, min_workers=min_workers)


class TestTorchrun:
    def test_two_processes_share_a_group(self, entry: str, tmp_path: Path) -> None:
        payload = {"out": str(tmp_path)}
        launch(
            entry,
            payload,
            Workers(launcher="torchrun", num_workers=2, max_failures=0),
            storage=tmp_path,
        )
        one, other = reports(tmp_path)
        assert len({one["pid"], other["pid"], os.getpid()}) == 3
        assert one["total"] == other["total"] == 3.0

    def test_an_error_of_a_worker_arrives_as_it_was(self, entry: str, tmp_path: Path) -> None:
        payload = {"out": str(tmp_path), "raise": True}
        with pytest.raises(DataError) as caught:
            launch(
                entry,
                payload,
                Workers(launcher="torchrun", num_workers=2, max_failures=0),
                storage=tmp_path,
            )
        assert (caught.value.code, caught.value.fix) == ("DATA-09", "Add some.")

    def test_a_dead_worker_is_named(self, entry: str, tmp_path: Path) -> None:
        payload = {"out": str(tmp_path), "die": True}
        with pytest.raises(RunError, match=r"torchrun\.log") as caught:
            launch(
                entry,
                payload,
                Workers(launcher="torchrun", num_workers=1, max_failures=0),
                storage=tmp_path,
            )
        assert caught.value.code == "RUN-02"

    def test_after_a_loss_all_are_started_again(self, entry: str, tmp_path: Path) -> None:
        payload = {"out": str(tmp_path), "die_once": True}
        workers = Workers(launcher="torchrun", num_workers=2, max_failures=1)
        launch(entry, payload, workers, storage=tmp_path)
        assert [report["total"] for report in reports(tmp_path)] == [3.0, 3.0]
        assert len((tmp_path / "lives").read_text()) == 4

    def test_an_error_of_ours_is_no_loss(self, entry: str, tmp_path: Path) -> None:
        payload = {"out": str(tmp_path), "raise": True}
        workers = Workers(launcher="torchrun", num_workers=2, max_failures=3)
        with pytest.raises(DataError, match="too few"):
            launch(entry, payload, workers, storage=tmp_path)
        assert len((tmp_path / "lives").read_text()) == 2


@pytest.mark.ray
class TestRay:
    def test_an_unreachable_cluster_is_named(self, entry: str, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="cannot be reached"):
            launch(
                entry, {}, Workers(ray="127.0.0.1:1", num_workers=2), storage=tmp_path
            )  # fmt: skip
