"""A service that is stopped or killed: every job ends right, and once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.downstream.serving_client import Client, ServerProcess, processes_below

pytestmark = pytest.mark.slow


class TestStopping:
    def test_a_stopped_service_goes_on_where_it_was(self, tmp_path: Path, raw: bytes) -> None:
        first = ServerProcess(tmp_path, "wavelet", "--shutdown-s", "0.01")
        client = Client(first.url)
        half = client.create(len(raw))["id"]
        client.patch(half, 0, raw[:1000])
        job = client.upload(raw)
        assert first.stop(signal.SIGTERM) == 0
        second = ServerProcess(tmp_path, "wavelet")
        client = Client(second.url)
        try:
            assert client.wait(job)["state"] == "done"
            assert client.job(half)["offset"] == 1000
            client.patch(half, 1000, raw[1000:])
            assert client.wait(half)["state"] == "done"
        finally:
            second.stop()


class TestExpiry:
    def test_what_expires_is_erased(self, tmp_path: Path, raw: bytes) -> None:
        """Results, and uploads that nobody goes on with, with their keys."""
        process = ServerProcess(tmp_path, "wavelet", "--keep-h", "0.002")
        client, data = Client(process.url), tmp_path / "data"
        try:
            half = client.create(len(raw))["id"]
            client.patch(half, 0, raw[:1000])
            done = client.run(raw)
            seen = time.time()
            assert done["state"] == "done"
            assert done["expires"] == pytest.approx(done["updated"] + 7.2)
            assert (data / "results" / done["id"] / "dicom.zip").exists()
            while client.ask("GET", f"/v1/jobs/{done['id']}").status == 200:
                assert time.time() < seen + 20
                time.sleep(0.2)
            assert time.time() > done["expires"]
            assert client.ask("GET", f"/v1/jobs/{half}").status == 404
            assert client.ask("GET", "/v1/jobs").json()["jobs"] == []
            for folder in ("results", "spool", "work"):
                assert not any((data / folder).iterdir())
        finally:
            process.stop()


class TestKilled:
    def test_twenty_jobs_in_flight(self, tmp_path: Path, raw: bytes) -> None:
        """Killed three times, others half uploaded, waiting, running; at the end all are right."""
        process = ServerProcess(tmp_path, "wavelet", "--workers", "2")
        client = Client(process.url)
        jobs = [client.upload(raw) for _ in range(19)]
        half = client.create(len(raw))["id"]
        client.patch(half, 0, raw[:5000])
        for ended in (2, 5, 8):
            while len([job for job in jobs if client.job(job)["state"] == "done"]) < ended:
                time.sleep(0.2)
            process.stop(signal.SIGKILL)
            process = ServerProcess(tmp_path, "wavelet", "--workers", "2")
            client = Client(process.url)
        assert client.job(half)["offset"] == 5000
        assert client.patch(half, 5000, raw[5000:]).status == 200
        try:
            found = [client.wait(job, 240) for job in (*jobs, half)]
            images = [client.result(job, "reconstruction.h5") for job in (*jobs, half)]
        finally:
            process.stop()
        assert {job["state"] for job in found} == {"done"}
        with h5py.File(io.BytesIO(images[0])) as file:
            first = file["reconstruction"][()]
        for image in images[1:]:
            with h5py.File(io.BytesIO(image)) as file:
                np.testing.assert_array_equal(file["reconstruction"][()], first)
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        ends = [line["job"] for line in lines if line["event"] == "job" and line["state"] == "done"]
        assert len(ends) == len(set(ends))  # once each
        assert not any((tmp_path / "data" / "spool").iterdir())
        assert len(list((tmp_path / "data" / "results").iterdir())) == 20
        digest = hashlib.sha256(str(tmp_path / "data").encode()).hexdigest()[:16]
        assert not list(Path("/dev/shm").glob(f"core-mri-{digest}-*"))  # nothing unsealed is left

    def test_a_file_that_kills_its_process_costs_one_job(self, tmp_path: Path, raw: bytes) -> None:
        """Whatever ends the process of a job, the service goes on."""
        process = ServerProcess(tmp_path, "wavelet")
        client = Client(process.url)
        try:
            job = client.upload(raw)
            while client.job(job)["phase"] != "de-identifying":
                time.sleep(0.01)
            for victim in processes_below(process.process.pid, depth=2):
                os.kill(victim, signal.SIGKILL)
            found = client.wait(job)
            assert found["error"]["code"] == "SERVE-06"
            assert "signal 9" in found["error"]["message"]
            assert client.run(raw)["state"] == "done"
        finally:
            process.stop()
