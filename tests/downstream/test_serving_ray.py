"""`core-mri serve --ray`: the same service on Ray Serve, replicas killed, a cluster of its own.

Ray starts slowly, so most of this is slow: ``pytest tests/downstream/test_serving_ray.py``, with
the extra `serve-ray` installed.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest

import core_mri
from core_mri.__main__ import main
from core_mri.errors import ServingError
from core_mri.physics.phantoms import phantom_volume
from downstream.serving.replicas import MARK, check_shared
from downstream.serving.settings import own_scratch
from tests.downstream.conftest import ALICE, BOB
from tests.downstream.dicom_service import fetch, get, make_series, parts_of, post
from tests.downstream.leaderboard_files import (
    CARD,
    degraded,
    images,
    knee_board,
    write_images,
    zipped,
)
from tests.downstream.serving_client import (
    ENDED,
    Client,
    ServerProcess,
    processes_below,
    processes_called,
)

JOBS, FRONT = "ray::ServeReplica:core-mri:jobs", "ray::ServeReplica:core-mri:http"
installed = pytest.mark.skipif(
    importlib.util.find_spec("grpc_reflection") is None, reason="the extra serve-ray is not there"
)


def until(condition: Any, timeout_s: float = 90) -> Any:
    """What a condition gives, once it is true."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("still not")


def image(client: Client, job: str) -> np.ndarray:
    with h5py.File(io.BytesIO(client.result(job, "reconstruction.h5"))) as file:
        found: np.ndarray = file["reconstruction"][()]
        return found


class TestScratch:
    def test_only_killed_processes_lose_theirs(self, tmp_path: Path) -> None:
        """Replicas of one machine share the place for unsealed files."""
        code = (
            "import sys, time; from pathlib import Path; "
            "from downstream.serving.settings import own_scratch; "
            "print(own_scratch(Path(sys.argv[1])), flush=True); time.sleep(600)"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        (theirs / "sent").write_text("unsealed")
        ours = [own_scratch(tmp_path)]
        assert (theirs / "sent").exists()
        other.kill()
        other.communicate()
        ours.append(own_scratch(tmp_path))
        assert not theirs.exists()
        assert all(folder.is_dir() for folder in ours)  # a process does not take its own for dead
        for folder in ours:
            shutil.rmtree(folder)


class TestRefusals:
    def test_another_folder_than_that_of_the_service(self, tmp_path: Path) -> None:
        with pytest.raises(ServingError, match="SERVE-71"):
            check_shared(tmp_path, "mark")
        (tmp_path / MARK).write_text("mark")
        check_shared(tmp_path, "mark")
        with pytest.raises(ServingError, match="SERVE-71"):
            check_shared(tmp_path, "that of another service")

    def test_without_the_extra(self, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
        for name in [name for name in sys.modules if name.startswith("ray.serve")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "ray.serve", None)
        words = ["serve", "wavelet", "--ray", "local", "--data-dir", str(tmp_path / "data")]
        assert main(words) == 2
        assert "core-mri[serve-ray]" in capsys.readouterr().err
        assert not (tmp_path / "data").exists()

    @pytest.mark.parametrize("door", ["--mrd", "--dimse"])
    def test_doors_of_one_process(self, door: str, tmp_path: Path, capsys: Any) -> None:
        words = ["serve", "wavelet", "--ray", "local", door, "--data-dir", str(tmp_path / "data")]
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "CONFIG-05" in said
        assert "without --ray" in said
        assert not (tmp_path / "data").exists()

    @installed
    def test_a_folder_that_is_no_leaderboard(self, tmp_path: Path, capsys: Any) -> None:
        words = ["serve", "--ray", "local", "--leaderboards", str(tmp_path)]
        assert main([*words, "--data-dir", str(tmp_path / "data")]) == 1
        assert "BOARD-01" in capsys.readouterr().err
        assert not (tmp_path / "data").exists()

    @installed
    def test_a_cluster_that_is_not_there(self, tmp_path: Path, capsys: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        words = ["serve", "wavelet", "--ray", f"127.0.0.1:{port}", "--data-dir", str(tmp_path)]
        assert main(words) == 1
        assert "RUN-02" in capsys.readouterr().err


@pytest.fixture(scope="module")
def on_ray(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A cluster of its own, for two users and boxes and clicks."""
    folder = tmp_path_factory.mktemp("ray")
    tokens = folder / "tokens"
    tokens.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    tokens.chmod(0o600)
    board, _ = knee_board(folder)
    process = ServerProcess(
        folder, "wavelet", "zero-filled", str(released / "random"), "--ray", "local",
        "--workers", "2", "--device", "cpu", "--token-file", str(tokens), "--chunk-mb", "2",
        "--leaderboards", str(board.folder),
    )  # fmt: skip
    yield process
    assert process.stop() == 0
    until(lambda: not processes_called("ray::ServeReplica"), 30)


@pytest.fixture
def alice(on_ray: ServerProcess) -> Client:
    return Client(on_ray.url, ALICE)


@installed
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
class TestService:
    @pytest.mark.data
    @pytest.mark.parametrize("name", ["phantom_14ch_R3_ismrmrd.h5", "brain_8ch_cartesian_ksp.npy"])
    def test_real_files_as_the_command(
        self, name: str, alice: Client, shared_data: Path, tmp_path: Path
    ) -> None:
        path = shared_data / "kspace" / name
        found = alice.run(path.read_bytes())
        assert found["state"] == "done", found["error"]
        assert main(["reconstruct", "wavelet", str(path), "--out", str(tmp_path / "o.h5")]) == 0
        with h5py.File(tmp_path / "o.h5") as command:
            np.testing.assert_array_equal(image(alice, found["id"]), command["reconstruction"][()])
        names = {result["name"] for result in found["results"]}
        assert {"reconstruction.nii.gz", "dicom.zip", "preview.png"} <= names

    def test_what_passes_the_gate(self, on_ray: ServerProcess, alice: Client, raw: bytes) -> None:
        stranger, bob = Client(on_ray.url), Client(on_ray.url, BOB)
        assert stranger.ask("GET", "/v1/jobs").status == 401
        assert stranger.ask("GET", "/health").status == 200
        page = stranger.ask("GET", "/")
        assert "script-src 'self';" in page.headers["content-security-policy"]
        job = alice.create(len(raw), name="Ywklmpqr")["id"]
        assert bob.ask("GET", f"/v1/jobs/{job}").status == 404
        assert alice.patch(job, 0, bytes(2_000_001)).status == 413
        assert alice.patch(job, 5, raw[5:]).headers["upload-offset"] == "0"
        assert alice.ask("GET", "/ready").json() == {"status": "ok"}
        assert 'core_mri_jobs{state="uploading"} 1.0' in alice.ask("GET", "/metrics").body.decode()
        assert alice.ask("DELETE", f"/v1/jobs/{job}").status == 204

    def test_events(self, alice: Client, raw: bytes) -> None:
        job = alice.upload(raw)
        connection = http.client.HTTPConnection(*alice.address, timeout=60)
        headers = {"Authorization": f"Bearer {alice.token}"}
        connection.request("GET", f"/v1/jobs/{job}/events", headers=headers)
        answer = connection.getresponse()
        assert (answer.getheader("content-type") or "").startswith("text/event-stream")
        lines = answer.read().decode().splitlines()
        connection.close()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        assert events[-1]["state"] == "done"
        assert len(events) >= 2

    def test_replicas_follow_the_queue(self, alice: Client, long_raw: bytes, raw: bytes) -> None:
        """Jobs that wait bring a second replica, and two run at once."""
        jobs = [alice.upload(long_raw) for _ in range(10)]

        def at_work() -> int:
            return sum(alice.job(job)["phase"].startswith("slice ") for job in jobs)

        until(lambda: at_work() == 2, 180)
        assert len(processes_called(JOBS)) == 2
        for job in jobs:
            alice.ask("POST", f"/v1/jobs/{job}/cancel")
        start = time.monotonic()
        assert alice.run(raw)["state"] == "done"
        assert time.monotonic() - start < 30

    def test_a_running_job_is_cancelled(
        self, on_ray: ServerProcess, alice: Client, long_raw: bytes
    ) -> None:
        job = alice.upload(long_raw)
        alice.until(job, "slice ")
        replicas = processes_called(JOBS)
        below = {p for replica in replicas for p in processes_below(replica, depth=2)}
        assert below
        assert alice.ask("POST", f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
        until(lambda: not {p for r in replicas for p in processes_below(r, depth=2)}, 20)
        until(lambda: not (on_ray.data / "spool" / job).exists(), 20)
        digest = hashlib.sha256(str(on_ray.data).encode()).hexdigest()[:16]
        pattern = f"core-mri-{digest}-*/*/sent"
        until(lambda: not list(Path("/dev/shm").glob(pattern)), 20)
        assert not list((on_ray.data / "work").glob(f"{job}*"))

    def test_prompts_meet_one_embedding(
        self, on_ray: ServerProcess, alice: Client, tmp_path: Path
    ) -> None:
        scan = phantom_volume("abdomen", 1, size=48, num_slices=5)[0]
        core_mri.write_volume(scan, tmp_path / "scan.nii.gz")
        job = alice.run((tmp_path / "scan.nii.gz").read_bytes(), source="random")["id"]
        digest = hashlib.sha256(str(on_ray.data).encode()).hexdigest()[:16]
        pattern = f"core-mri-{digest}-*/prompts-*"
        box = {"boxes": [[5, 5, 2, scan.shape[0] - 5, scan.shape[1] - 5, 3]]}
        answers = [alice.ask("POST", f"/v1/jobs/{job}/prompts", box).json() for _ in range(3)]
        assert all("report" in answer for answer in answers), answers
        assert len({json.dumps(answer["report"]["structures"]) for answer in answers}) == 1
        assert len(list(Path("/dev/shm").glob(pattern))) == 1  # the scan is ready once
        (tmp_path / "mask.nii.gz").write_bytes(alice.result(job, "mask.nii.gz"))
        mask = core_mri.read_volume(tmp_path / "mask.nii.gz", kind="label")
        (structure,) = answers[0]["report"]["structures"]
        assert structure["voxels"] == int((mask.array == 1).sum()) > 0
        outside = alice.ask("POST", f"/v1/jobs/{job}/prompts", {"points": [[0, 0, 99, 1]]})
        assert (outside.status, outside.code) == (422, "CONFIG-05")
        assert alice.ask("DELETE", f"/v1/jobs/{job}").status == 204
        until(lambda: not list(Path("/dev/shm").glob(pattern)), 20)  # and ready no longer

    def test_dicomweb(self, alice: Client, tmp_path: Path) -> None:
        """Stored, found, fetched; a mask that boxes gave is found beside its images."""
        files = [path.read_bytes() for path in make_series(tmp_path / "sent", "ray")]
        answer = post(alice, files)
        assert answer.status == 200, answer.body
        came = parts_of(fetch(alice, answer.json()["00081190"]["Value"][0]))
        pixels = [
            sorted(pydicom.dcmread(io.BytesIO(f)).PixelData for f in s) for s in (came, files)
        ]
        assert pixels[0] == pixels[1]
        job = alice.ask("GET", "/v1/jobs").json()["jobs"][0]["id"]
        box = {"boxes": [[5, 5, 1, 43, 43, 2]]}
        assert alice.ask("POST", f"/v1/jobs/{job}/prompts", box).status == 200
        (mask,) = get(alice, "/instances?Modality=SEG").json()
        (content,) = parts_of(fetch(alice, mask["00081190"]["Value"][0]))
        assert content == alice.result(job, "mask.dcm")

    def test_a_submission_to_a_leaderboard(self, alice: Client, tmp_path: Path) -> None:
        arrays = degraded(images(), 0.1, 1)
        content = zipped(write_images(tmp_path / "sent", arrays)).read_bytes()
        new = {"size": len(content), "name": "net", "card": CARD}
        job = alice.ask("POST", "/v1/leaderboards/knees/submissions", new).json()["id"]
        assert alice.patch(job, 0, content).status == 200
        found = alice.wait(job)
        assert (found["state"], found["report"].get("rank")) == ("done", 1), found["error"]
        (row,) = alice.ask("GET", "/v1/leaderboards/knees").json()["submissions"]
        assert (row["name"], row["owner"]) == ("net", "alice")

    def test_killed_replicas(self, on_ray: ServerProcess, alice: Client, long_raw: bytes) -> None:
        """First the one at work, then the one with the queue: every job ends right, and once."""
        jobs = [alice.upload(long_raw[:]) for _ in range(3)]
        until(lambda: any(alice.job(job)["phase"].startswith("slice ") for job in jobs))
        for replica in processes_called(JOBS):
            os.kill(replica, signal.SIGKILL)
        until(lambda: any(alice.job(job)["phase"].startswith("slice ") for job in jobs))
        (front,) = processes_called(FRONT)
        os.kill(front, signal.SIGKILL)
        until(lambda: front not in processes_called(FRONT))

        def state(job: str) -> str:
            answer = alice.ask("GET", f"/v1/jobs/{job}")
            return str(answer.json()["state"]) if answer.status == 200 else ""

        until(lambda: all(state(job) in ENDED for job in jobs), 240)
        assert [state(job) for job in jobs] == ["done"] * 3
        images = [image(alice, job) for job in jobs]
        for other in images[1:]:
            np.testing.assert_array_equal(other, images[0])
        until(lambda: not list((on_ray.data / "work").iterdir()), 20)
        assert not list((on_ray.data / "spool").iterdir())
        digest = hashlib.sha256(str(on_ray.data).encode()).hexdigest()[:16]
        pattern = f"core-mri-{digest}-*/*/sent"
        until(lambda: not list(Path("/dev/shm").glob(pattern)), 20)


@installed
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
class TestClusterOfOthers:
    @pytest.fixture
    def address(self) -> Iterator[str]:
        """A cluster of one processor."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
             f"--port={port}", "--num-cpus=1", "--include-dashboard=false",
             "--node-ip-address=127.0.0.1", "--disable-usage-stats"],
            env=os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(path)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: _listens(port))
        time.sleep(3)  # until its raylet is there
        yield f"127.0.0.1:{port}"
        head.send_signal(signal.SIGTERM)
        head.wait(60)

    def test_a_service_goes_on_without_its_command(
        self, address: str, released: Path, raw: bytes, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        words = ("wavelet", "--ray", address)
        first = ServerProcess(tmp_path, *words, port=port)
        client = Client(first.url)
        job = client.run(raw)["id"]
        first.stop(signal.SIGKILL)
        assert client.job(job)["state"] == "done"  # the cluster goes on
        half = client.create(len(raw))["id"]
        client.patch(half, 0, raw[:1000])
        second = ServerProcess(tmp_path, *words, port=port)  # takes over
        try:
            assert client.job(job)["state"] == "done"
            assert client.patch(half, 1000, raw[1000:]).status == 200
            assert client.wait(half)["state"] == "done"
            np.testing.assert_array_equal(image(client, half), image(client, job))
            command = [sys.executable, "-m", "core_mri", "serve", "--ray", address, "--data-dir"]
            for sources, at, code in (
                (["wavelet"], port + 1, "SERVE-70"),
                (["wavelet", str(released / "random")], port, "SERVE-72"),
            ):
                done = subprocess.run(
                    [*command, str(tmp_path / "other"), "--port", str(at), *sources],
                    capture_output=True, text=True, timeout=200, check=False,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                )  # fmt: skip
                assert done.returncode == 1
                assert code in done.stderr
            assert client.ask("GET", "/ready").status == 200  # refusals end nobody else's service
        finally:
            second.stop()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
