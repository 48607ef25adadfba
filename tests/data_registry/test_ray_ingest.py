"""A two-node Ray cluster ingests what one machine does, whoever is killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core_mri.errors import DataError, RunError
from data_registry.ray_pool import RayPool
from tests.data_registry.kill_ingest import fingerprint, make_scans

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

INGEST = """
import sys
from pathlib import Path
from data_registry import IngestConfig, Source, ingest

if __name__ == "__main__":
    scans, registry, key, ray = sys.argv[1:]
    source = {"licence": "CC0-1.0", "role": "by-name"}
    ingest(IngestConfig(
        registry=Path(registry), key_file=Path(key), jobs=2, shard_mb=1, ray=ray,
        sources=(Source(name="a", root=scans + "/a", **source),
                 Source(name="b", root=scans + "/b", **source)),
    ))
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    make_scans(folder)
    return folder


@pytest.fixture(scope="module")
def local(scans: Path, tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> dict[str, str]:
    """What an ingest on one machine gives."""
    registry = tmp_path_factory.mktemp("local") / "registry"
    assert start(scans, registry, key_file, "").wait() == 0
    return fingerprint(registry)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one core each, beside a head that does no work."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        nodes.workers = [nodes.add_node(num_cpus=1) for _ in range(2)]
        nodes.wait_for_nodes()
        yield nodes
    finally:
        nodes.shutdown()


def start(scans: Path, registry: Path, key_file: Path, ray: str) -> subprocess.Popen[bytes]:
    script = registry.parent / "ingest.py"
    script.write_text(INGEST)
    command = [sys.executable, str(script), str(scans), str(registry), str(key_file), ray]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


def wait_for_commits(registry: Path, number: int, process: subprocess.Popen[bytes]) -> None:
    while len(list(registry.glob("commits/0*"))) < number:
        assert process.poll() is None, "it ended before it could be disturbed"
        time.sleep(0.02)


def workers_in_a_task() -> list[int]:
    """Process ids of Ray workers that are reading."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::read_batch"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


class TestIngest:
    def test_undisturbed(
        self, scans: Path, tmp_path: Path, key_file: Path, cluster: Any, local: dict[str, str]
    ) -> None:
        assert start(scans, tmp_path / "reg", key_file, cluster.address).wait() == 0
        assert fingerprint(tmp_path / "reg") == local

    def test_a_killed_worker(
        self, scans: Path, tmp_path: Path, key_file: Path, cluster: Any, local: dict[str, str]
    ) -> None:
        process = start(scans, tmp_path / "reg", key_file, cluster.address)
        wait_for_commits(tmp_path / "reg", 2, process)
        killed = 0
        while not killed and process.poll() is None:
            for pid in workers_in_a_task():
                os.kill(pid, signal.SIGKILL)
                killed += 1
        assert process.wait() == 0
        assert killed
        assert fingerprint(tmp_path / "reg") == local

    def test_a_killed_node(
        self, scans: Path, tmp_path: Path, key_file: Path, cluster: Any, local: dict[str, str]
    ) -> None:
        process = start(scans, tmp_path / "reg", key_file, cluster.address)
        wait_for_commits(tmp_path / "reg", 2, process)
        cluster.remove_node(cluster.workers[0], allow_graceful=False)
        assert process.wait() == 0
        assert fingerprint(tmp_path / "reg") == local

    def test_a_killed_driver(
        self, scans: Path, tmp_path: Path, key_file: Path, cluster: Any, local: dict[str, str]
    ) -> None:
        process = start(scans, tmp_path / "reg", key_file, cluster.address)
        wait_for_commits(tmp_path / "reg", 2, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert len(list((tmp_path / "reg").glob("commits/0*"))) >= 2
        assert start(scans, tmp_path / "reg", key_file, cluster.address).wait() == 0
        assert fingerprint(tmp_path / "reg") == local


def double(number: int) -> int:
    return 2 * number


def refuse(number: int) -> int:
    raise DataError("DATA-07", f"no room for {number}.")


def die(task: tuple[int, ...]) -> tuple[int, ...]:
    if 2 in task:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


class TestPool:
    def test_order_errors_and_deaths(self, cluster: Any) -> None:
        with RayPool(cluster.address) as pool:
            assert pool.num_workers == 2
            assert list(pool.each(double, range(20))) == [(n, 2 * n) for n in range(20)]
            with pytest.raises(DataError, match="DATA-07: no room for 0"):
                list(pool.each(refuse, range(3)))
            found = list(pool.each(die, [(1,), (2, 3), (4,)], lambda task: [(n,) for n in task]))
            assert found == [((1,), (1,)), ((2,), None), ((3,), (3,)), ((4,), (4,))]

    def test_nobody_there(self) -> None:
        with pytest.raises(RunError, match=r"RUN-02.*cannot be reached"), RayPool("127.0.0.1:1"):
            pass
