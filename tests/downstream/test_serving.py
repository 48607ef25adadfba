"""`core-mri serve` as its users meet it: a process of its own, asked over HTTP."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import re
import stat
import time
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pydicom import dcmread

import core_mri
from core_mri.__main__ import main
from core_mri.files import write_kspace
from core_mri.volume import orientation_of
from downstream.reconstruction.scores import volume_scores
from tests.downstream.serving_client import Client, ServerProcess, processes_below
from tests.downstream.test_reconstruct import (
    LPS_AFFINE,
    line_mask,
    make_samples,
    make_scan,
)

NAME = "Ywklmpqr"


@pytest.fixture(scope="module")
def done(client: Client, raw: bytes) -> Any:
    """A job that is done."""
    return client.run(raw, name=f"{NAME}.h5")


class TestRawData:
    def test_the_images_are_those_of_the_command(
        self, done: Any, client: Client, raw: bytes, tmp_path: Path
    ) -> None:
        assert done["state"] == "done", done["error"]
        (tmp_path / "raw.h5").write_bytes(raw)
        main(["reconstruct", "wavelet", str(tmp_path / "raw.h5"), "--out", str(tmp_path / "o.h5")])
        with h5py.File(io.BytesIO(client.result(done["id"], "reconstruction.h5"))) as ours:
            assert list(ours) == ["reconstruction"]
            images = ours["reconstruction"][()]
        with h5py.File(tmp_path / "o.h5") as command:
            np.testing.assert_array_equal(images, command["reconstruction"][()])
        with h5py.File(tmp_path / "raw.h5") as file:
            expected = volume_scores(file["reconstruction_rss"][()], images)
        metrics = done["report"]["metrics"]
        assert metrics["reference"] == "reconstruction_rss"
        assert metrics["wavelet"] == pytest.approx(expected)
        assert metrics["wavelet"]["PSNR"] > metrics["zero-filled"]["PSNR"] + 5

    def test_the_report_is_a_result(self, done: Any, client: Client) -> None:
        report = json.loads(client.result(done["id"], "report.json"))
        assert report == done["report"]
        assert "not for diagnostic use" in report["notice"]
        assert report["acceleration"] == pytest.approx(56 / line_mask().sum(), abs=1e-3)
        assert report["center_lines"] == 14
        assert len(report["residual"]) == 3
        assert report["geometry"] == "synthetic"
        assert not report["simulated_undersampling"]

    def test_a_derived_series_that_says_what_it_is(
        self, done: Any, client: Client, tmp_path: Path
    ) -> None:
        with zipfile.ZipFile(io.BytesIO(client.result(done["id"], "dicom.zip"))) as archive:
            archive.extractall(tmp_path / "series")
        headers = [dcmread(path) for path in sorted((tmp_path / "series").iterdir())]
        assert len(headers) == 3
        for header in headers:
            assert list(header.ImageType) == ["DERIVED", "PRIMARY", "M"]
            assert "not for diagnostic use" in header.DerivationDescription
            assert "wavelet" in header.DerivationDescription
            assert header.ContentQualification == "RESEARCH"
        for keyword, number in (("SeriesInstanceUID", 1), ("SOPInstanceUID", 3)):
            assert len({header[keyword].value for header in headers}) == number
        (tmp_path / "image.nii.gz").write_bytes(client.result(done["id"], "reconstruction.nii.gz"))
        series = core_mri.read_volume(tmp_path / "series")
        image = core_mri.read_volume(tmp_path / "image.nii.gz")
        image = image.reorient(orientation_of(series.affine))
        assert series.same_grid(image)
        step = image.array.max() / 65535
        np.testing.assert_allclose(series.array, image.array, atol=step)

    def test_the_picture_and_the_maps(self, done: Any, client: Client, tmp_path: Path) -> None:
        assert client.result(done["id"], "preview.png").startswith(b"\x89PNG")
        volumes = {}
        for name in ("reconstruction", "reference", "difference", "zero_filled"):
            (tmp_path / f"{name}.nii.gz").write_bytes(client.result(done["id"], f"{name}.nii.gz"))
            volumes[name] = core_mri.read_volume(tmp_path / f"{name}.nii.gz").array
        expected = np.abs(volumes["reconstruction"] - volumes["reference"])
        np.testing.assert_allclose(volumes["difference"], expected, rtol=1e-5, atol=1e-7)

    def test_undersampling_can_be_simulated(self, client: Client, tmp_path: Path) -> None:
        write_kspace(make_scan(make_samples(1)), tmp_path / "full.h5")
        mask = {"kind": "equispaced", "acceleration": 3.0, "center_fraction": 0.25, "seed": 1}
        found = client.run((tmp_path / "full.h5").read_bytes(), mask=mask, source="zero-filled")
        assert found["report"]["simulated_undersampling"]
        assert found["report"]["acceleration"] > 1.5
        assert found["report"]["metrics"]["zero-filled"]["NMSE"] > 0

    def test_geometry_of_ismrmrd_is_kept(self, client: Client, tmp_path: Path) -> None:
        scan = make_scan(make_samples(2), affine=LPS_AFFINE)
        write_kspace(scan, tmp_path / "raw.mrd", layout="ismrmrd")
        found = client.run((tmp_path / "raw.mrd").read_bytes(), source="zero-filled")
        assert found["report"]["geometry"] == "from the raw data", found
        (tmp_path / "a.nii.gz").write_bytes(client.result(found["id"], "reconstruction.nii.gz"))
        main(["reconstruct", "zero-filled", str(tmp_path / "raw.mrd"), "--out",
              str(tmp_path / "b.nii.gz")])  # fmt: skip
        ours, command = (core_mri.read_volume(tmp_path / f"{n}.nii.gz") for n in "ab")
        assert ours.same_grid(command)
        np.testing.assert_array_equal(ours.array, command.array)

    @pytest.mark.data
    @pytest.mark.parametrize(
        ("name", "coils"),
        [("phantom_14ch_R3_ismrmrd.h5", 14), ("brain_8ch_cartesian_ksp.npy", 8)],
    )
    def test_real_files(self, name: str, coils: int, client: Client, shared_data: Path) -> None:
        found = client.run((shared_data / "kspace" / name).read_bytes())
        assert found["state"] == "done", found["error"]
        assert found["report"]["coils"] == coils
        assert all(r < 0.06 for r in found["report"]["residual"])
        assert found["report"]["metrics"] is None
        names = {result["name"] for result in found["results"]}
        assert {"reconstruction.nii.gz", "dicom.zip", "reconstruction.h5", "preview.png"} <= names


class TestUpload:
    def test_in_parts_after_a_lost_connection(self, client: Client, raw: bytes) -> None:
        job = client.create(len(raw))["id"]
        half = len(raw) // 2
        assert client.patch(job, 0, raw[:half]).json()["offset"] == half
        again = client.patch(job, 0, raw[:half])  # the answer was lost, so it comes again
        assert (again.status, again.code) == (409, "SERVE-03")
        assert again.headers["upload-offset"] == str(half) == str(client.job(job)["offset"])
        assert client.patch(job, half + 1, raw[half + 1 :]).status == 409
        assert client.patch(job, half, raw[half:] + b"!").status == 409
        assert client.patch(job, half, raw[half:]).json()["state"] in ("queued", "running")
        assert client.wait(job)["state"] == "done"
        assert client.patch(job, len(raw), b"more").status == 409

    def test_idempotency_key(self, client: Client) -> None:
        headers = {"Idempotency-Key": "once"}
        first = client.ask("POST", "/v1/jobs", {"size": 10}, headers)
        second = client.ask("POST", "/v1/jobs", {"size": 10}, headers)
        other = client.ask("POST", "/v1/jobs", {"size": 11}, headers)
        assert (first.status, second.status, other.status) == (201, 200, 409)
        assert first.json()["id"] == second.json()["id"]

    def test_another_hash_than_announced(self, client: Client, raw: bytes) -> None:
        wrong = client.run(raw, sha256=hashlib.sha256(b"other").hexdigest())
        assert (wrong["state"], wrong["error"]["code"]) == ("failed", "SERVE-03")
        right = client.run(raw, sha256=hashlib.sha256(raw).hexdigest(), source="zero-filled")
        assert right["state"] == "done"

    def test_parts_lie_sealed_and_are_thrown_away(
        self, serving: ServerProcess, client: Client, raw: bytes, done: Any
    ) -> None:
        spool = serving.data / "spool"
        assert not (spool / done["id"]).exists()
        job = client.create(len(raw))["id"]
        client.patch(job, 0, raw[:-1])
        parts = list((spool / job).glob("*.part"))
        assert sum(p.stat().st_size for p in parts) >= len(raw) - 1
        signature = raw[:8]  # of HDF5; three bytes alone are found in sealed ones by chance
        assert not any(signature in p.read_bytes() for p in parts)
        for path in (serving.data, spool, spool / job):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        for path in (spool / job / "key", serving.data / "jobs.sqlite", *parts):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        assert client.ask("POST", f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
        assert not (spool / job).exists()
        assert client.patch(job, len(raw) - 1, raw[-1:]).status == 409
        assert client.ask("POST", f"/v1/jobs/{job}/cancel").status == 409


class TestLife:
    def test_events(self, client: Client, raw: bytes) -> None:
        job = client.upload(raw)
        connection = http.client.HTTPConnection(*client.address, timeout=60)
        headers = {"Authorization": f"Bearer {client.token}"}
        connection.request("GET", f"/v1/jobs/{job}/events", headers=headers)
        answer = connection.getresponse()
        assert answer.getheader("content-type") == "text/event-stream; charset=utf-8"
        text = answer.read().decode()  # the stream ends with the job
        connection.close()
        events = [json.loads(data) for data in re.findall(r"^data: (.*)$", text, re.M)]
        assert events[-1]["state"] == "done"
        running = [event["progress"] for event in events if event["state"] == "running"]
        assert running == sorted(running)
        assert len(events) >= 2

    def test_a_running_job_is_cancelled(
        self, serving: ServerProcess, client: Client, raw: bytes, long_raw: bytes
    ) -> None:
        """Its process and its key are gone, it leaves nothing, and the next one has its turn."""
        job = client.upload(long_raw)
        client.until(job, "slice ")
        assert (serving.data / "spool" / job / "key").exists()
        # Below the service: who forks (and its tracker), below these: the job.
        (process,) = processes_below(serving.process.pid, depth=2)
        assert client.ask("POST", f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
        start = time.monotonic()
        assert client.run(raw, source="zero-filled")["state"] == "done"
        assert time.monotonic() - start < 20
        assert process not in processes_below(serving.process.pid, depth=2)
        assert not (serving.data / "spool" / job).exists()
        assert not (serving.data / "results" / job).exists()
        assert not list((serving.data / "work").glob(f"{job}*"))
        digest = hashlib.sha256(str(serving.data).encode()).hexdigest()[:16]
        assert not list(Path("/dev/shm").glob(f"core-mri-{digest}-*/{job}*"))
        assert client.job(job)["state"] == "cancelled"
        assert client.job(job)["results"] == []

    def test_erased_on_request(self, serving: ServerProcess, client: Client, raw: bytes) -> None:
        found = client.run(raw, source="zero-filled")
        assert (serving.data / "results" / found["id"]).is_dir()
        assert client.ask("DELETE", f"/v1/jobs/{found['id']}").status == 204
        assert not (serving.data / "results" / found["id"]).exists()
        assert client.ask("GET", f"/v1/jobs/{found['id']}").status == 404
        assert found["id"] not in [j["id"] for j in client.ask("GET", "/v1/jobs").json()["jobs"]]

    def test_history(self, client: Client, done: Any) -> None:
        jobs = client.ask("GET", "/v1/jobs").json()["jobs"]
        created = [job["created"] for job in jobs]
        assert created == sorted(created, reverse=True)
        assert next(j for j in jobs if j["id"] == done["id"])["name"] == f"{NAME}.h5"

    @pytest.mark.usefixtures("done")
    def test_operations(self, client: Client) -> None:
        assert client.ask("GET", "/health").json() == {"status": "ok"}
        assert client.ask("GET", "/ready").json() == {"status": "ok"}
        text = client.ask("GET", "/metrics").body.decode()
        assert re.search(r'core_mri_jobs\{state="done"\} [1-9]', text)
        assert 'core_mri_requests_total{method="POST",route="/v1/jobs",status="201"}' in text
        assert "core_mri_received_bytes_total" in text
        about = client.ask("GET", "/v1/service").json()
        assert [s["name"] for s in about["sources"]] == ["wavelet", "zero-filled"]
        paths = client.ask("GET", "/openapi.json").json()["paths"]
        assert {"/v1/jobs", "/v1/jobs/{job_id}/content", "/v1/jobs/{job_id}/events"} <= set(paths)

    def test_logs_are_json_without_names(self, serving: ServerProcess, done: Any) -> None:
        text = serving.log.read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert ("done", done["id"]) in [(line.get("state"), line.get("job")) for line in lines]
        assert NAME not in text


class TestStarting:
    def test_one_service_a_folder(self, serving: ServerProcess, capsys: Any) -> None:
        words = ["serve", "wavelet", "--port", "0", "--data-dir", str(serving.data)]
        assert main(words) == 1
        assert "SERVE-02" in capsys.readouterr().err

    def test_wrong_words(self, capsys: Any) -> None:
        assert main(["serve"]) == 2
        assert main(["serve", "wavelet", "--host", "0.0.0.0"]) == 2
        assert "SERVE-01" in capsys.readouterr().err
        assert main(["serve", "wavlet"]) == 2
        assert main(["serve", "wavelet", "--jobs", "0"]) == 2


class TestLimits:
    """In this order: each takes what the one before left."""

    def test_rate(self, tight: Client) -> None:
        replies = [tight.ask("GET", "/health") for _ in range(30)]
        assert [reply.status for reply in replies].count(200) >= 10
        late = next(reply for reply in replies if reply.status == 429)
        assert late.code == "SERVE-04"
        wait = int(late.headers["retry-after"])
        assert 1 <= wait <= 3
        time.sleep(wait)
        assert tight.ask("GET", "/health").status == 200
        time.sleep(1)

    def test_size_and_number(self, tight: Client) -> None:
        assert tight.ask("POST", "/v1/jobs", {"size": 2_000_001}).status == 422
        job = tight.create(100)["id"]
        assert tight.patch(job, 0, bytes(1_000_001)).status == 413
        tight.create(100)
        full = tight.ask("POST", "/v1/jobs", {"size": 100})
        assert (full.status, full.code) == (429, "SERVE-04")
        assert int(full.headers["retry-after"]) > 0
        for job in tight.ask("GET", "/v1/jobs").json()["jobs"]:
            assert tight.ask("DELETE", f"/v1/jobs/{job['id']}").status == 204
        time.sleep(1)

    def test_memory(self, client: Client, tmp_path: Path, raw: bytes) -> None:
        """A job of more than --job-gb fails with what to do; smaller ones go on."""
        parts = np.random.default_rng(0).normal(size=(2, 1, 32, 512, 384)).astype(np.float32)
        write_kspace(make_scan((parts[0] + 1j * parts[1]).astype(np.complex64)), tmp_path / "a.h5")
        found = client.run((tmp_path / "a.h5").read_bytes())
        assert (found["state"], found["error"]["code"]) == ("failed", "SERVE-05")
        assert "1 GB" in found["error"]["message"]
        assert "--job-gb" in found["error"]["fix"]
        assert client.run(raw)["state"] == "done"

    def test_time(self, tight: Client, raw: bytes) -> None:
        job = tight.upload(raw)
        while (found := tight.job(job))["state"] in ("queued", "running"):
            time.sleep(0.5)
        assert found["state"] == "failed"
        assert found["error"]["code"] == "SERVE-05"
        assert found["error"]["fix"]
