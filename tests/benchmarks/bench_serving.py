"""`core-mri serve` under load: answers for many clients at once, and a whole volume up and back.

    python -m tests.benchmarks.bench_serving --clients 50 --slices 36 --source cg-sense

The service runs in a process of its own; clients share the machine with it. Seconds of the API are
taken by the clients, with their own waiting for a core in it, and by the service (its log); the
reference of the same run is `GET /health`, which touches nothing. With ``--pause 0`` clients wait
for answers alone, so that their seconds tell the rate at which the service is full. The volume is
simulated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from tests.downstream.serving_client import Client, ServerProcess


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError


def percentiles(values: list[float]) -> str:
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return f"p50 {p50:6.1f}  p95 {p95:6.1f}  p99 {p99:6.1f} ms, n = {len(values)}"


def load(folder: Path, clients: int, rounds: int, pause_s: float) -> None:
    """Every client creates jobs, sends a part, asks for state and list, deletes."""
    server = ServerProcess(
        folder, "zero-filled", "--requests-per-s", "1e6", "--jobs", "100000", "--kept-jobs",
        "100000", "--connections", "1000",
    )  # fmt: skip
    time.sleep(20)  # the process that jobs fork from loads torch meanwhile
    seconds: dict[str, list[float]] = {}
    lost: list[str] = []
    lock = threading.Lock()

    def client() -> None:
        one = Client(server.url)
        own: list[tuple[str, float]] = []

        def timed(name: str, method: str, path: str, *more: object) -> object:
            start = time.perf_counter()
            reply = one.ask(method, path, *more)  # type: ignore[arg-type]
            own.append((name, 1000 * (time.perf_counter() - start)))
            time.sleep(random.uniform(0, 2 * pause_s))
            if reply.status >= 400:
                lost.append(f"{name} {reply.status}")
            return reply.json() if reply.body else None

        part = os.urandom(100_000)
        headers = {"Upload-Offset": "0", "Content-Type": "application/octet-stream"}
        for _ in range(rounds):
            timed("GET /health", "GET", "/health")
            job = timed("POST /v1/jobs", "POST", "/v1/jobs", {"size": 200_000})["id"]  # type: ignore[index]
            timed("PATCH 100 kB", "PATCH", f"/v1/jobs/{job}/content", part, headers)
            timed("GET /v1/jobs/ID", "GET", f"/v1/jobs/{job}")
            timed("DELETE", "DELETE", f"/v1/jobs/{job}")
        with lock:
            for name, value in own:
                seconds.setdefault(name, []).append(value)

    before = memory_mb(server.process.pid)
    for part_of_run in range(3):
        threads = [threading.Thread(target=client) for _ in range(clients)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.perf_counter() - start
        memory = memory_mb(server.process.pid)
        print(f"part {part_of_run + 1}: {5 * clients * rounds / wall:.0f} requests a second, "
              f"memory {memory:.0f} MB (start {before:.0f})")  # fmt: skip
    log = server.log.read_text().splitlines()
    server.stop()
    print(
        f"{clients} clients at once, {pause_s:g} s between their requests, refused or lost: "
        f"{len(lost)} {sorted(set(lost))[:3]}"
    )
    health = np.percentile(seconds["GET /health"], 95)
    for name, values in seconds.items():
        print(f"  {name:16} {percentiles(values)}; p95 / that of health "
              f"{np.percentile(values, 95) / health:.2f}")  # fmt: skip
    served = [json.loads(line) for line in log]
    own = [line["ms"] for line in served if line["event"] == "request"]
    print(f"  as the service   {percentiles(own)}")


def volume(folder: Path, source: str, shape: tuple[int, int, int, int]) -> None:
    """A simulated fastMRI file up, its DICOM series back."""
    import h5py
    import torch

    from core_mri.physics import fft2c, undersampling_mask
    from tests.core_mri.simulated_scan import bodies, coil_profiles

    slices, coils, height, width = shape
    torch.set_num_threads(1)
    samples = fft2c(coil_profiles(coils, height, width) * bodies(height, width)).numpy()
    mask = undersampling_mask(
        "equispaced", (height, width), center_fractions=[0.08], accelerations=[4], seed=0
    ).reshape(-1)  # fmt: skip
    rng = np.random.default_rng(0)
    path = folder / "volume.h5"
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("kspace", shape, np.complex64)
        for index in range(slices):
            noise = rng.normal(size=(*shape[1:], 2)).astype(np.float32).view(np.complex64)[..., 0]
            stored[index] = (samples + 0.002 * noise) * mask.numpy()
        file["mask"] = mask.numpy()
    server = ServerProcess(folder, source)
    time.sleep(20)
    client = Client(server.url)
    size, chunk = path.stat().st_size, 8_000_000
    start = time.perf_counter()
    job = client.create(size)["id"]
    with path.open("rb") as file:
        for offset in range(0, size, chunk):
            reply = client.patch(job, offset, file.read(chunk))
            assert reply.status == 200, reply.body
    uploaded = time.perf_counter() - start
    found = client.wait(job, 900)
    assert found["state"] == "done", found["error"]
    series = client.result(job, "dicom.zip")
    whole = time.perf_counter() - start
    report = found["report"]
    print(
        f"{source}, {slices} slices of {coils} x {height} x {width} ({size / 1e6:.0f} MB): upload "
        f"{uploaded:.1f} s, upload to DICOM ({len(series) / 1e6:.1f} MB) {whole:.1f} s wall; "
        f"solver {sum(report['cpu_s']):.1f} CPU-s, job {report['seconds']:.1f} s; service "
        f"{memory_mb(server.process.pid):.0f} MB; cores {len(os.sched_getaffinity(0))}, load "
        f"{os.getloadavg()[0]:.1f}"
    )
    server.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.2)
    parser.add_argument("--slices", type=int, default=36)
    parser.add_argument("--coils", type=int, default=15)
    parser.add_argument("--height", type=int, default=640)
    parser.add_argument("--width", type=int, default=368)
    parser.add_argument("--source", nargs="*", default=["cg-sense"])
    arguments = parser.parse_args()
    shape = (arguments.slices, arguments.coils, arguments.height, arguments.width)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.clients:
            (Path(folder) / "load").mkdir()
            load(Path(folder) / "load", arguments.clients, arguments.rounds, arguments.pause)
        for number, source in enumerate(arguments.source):
            (Path(folder) / str(number)).mkdir()
            volume(Path(folder) / str(number), source, shape)


if __name__ == "__main__":
    main()
