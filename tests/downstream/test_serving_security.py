"""What strangers try: each is refused, in plain words, and the service goes on.

Beside this, requests made from the OpenAPI document (schemathesis 4.32, not installed with the
tests), against a service with ``--requests-per-s 100000 --jobs 100000 --kept-jobs 1000000``:

    schemathesis run URL/openapi.json -H "Authorization: Bearer TOKEN" \\
        --phases examples,coverage,fuzzing --exclude-path-regex "events$"
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from core_mri.files import write_kspace
from tests.downstream.serving_client import Client, ServerProcess
from tests.downstream.test_reconstruct import make_samples, make_scan

PLANTED = "Zqxvwkab"


def refused(client: Client, content: bytes, code: str) -> Any:
    """The error of a file, which says what to do."""
    found = client.run(content)
    assert found["state"] == "failed"
    assert found["error"]["code"] == code, found["error"]
    assert found["error"]["fix"]
    assert "/dev/shm" not in str(found)
    assert "/tmp" not in str(found)
    return found["error"]


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def fastmri(path: Path, samples: np.ndarray, **changes: Any) -> bytes:
    write_kspace(make_scan(samples, **changes), path)
    return path.read_bytes()


class TestFiles:
    @pytest.mark.slow
    def test_names_that_climb_out(self, networks: ServerProcess) -> None:
        outside = networks.data.parent / "outside"
        up = "../" * 12
        refused(
            Client(networks.url),
            zipped(**{f"{up}{outside.relative_to('/')}": b"x", str(outside): b"x",
                      "a/../../b": b"x", "..\\..\\c": b"x"}),
            "DATA-03",
        )  # fmt: skip
        assert not outside.exists()

    @pytest.mark.parametrize(
        "name",
        ["../report.json", "..%2f..%2fjobs.sqlite", "%2e%2e/%2e%2e/jobs.sqlite", "/etc/passwd",
         "jobs.sqlite", "report.json%00", "....//jobs.sqlite"],
    )  # fmt: skip
    def test_results_that_climb_out(self, name: str, client: Client) -> None:
        job = client.create(10)["id"]
        for path in (f"/v1/jobs/{job}/results/{name}", f"/page/{name}", f"/v1/jobs/{name}"):
            assert client.ask("GET", path).status in (404, 422)

    @pytest.mark.slow
    def test_zip_bomb(self, networks: ServerProcess) -> None:
        """A third of a gigabyte of zeros in a third of a megabyte."""
        block = zipped(**{f"{n:04d}": bytes(1 << 24) for n in range(20)})
        assert len(block) < 2_000_000
        start = time.monotonic()
        assert "unpacks to more than" in refused(Client(networks.url), block, "DATA-13")["message"]
        assert time.monotonic() - start < 30

    @pytest.mark.slow
    def test_gzip_bomb(self, networks: ServerProcess) -> None:
        """A volume of 300 MB of zeros in 300 kB."""
        header = bytearray(352)
        struct.pack_into("<i", header, 0, 348)
        struct.pack_into("<8h", header, 40, 3, 1024, 1024, 75, 1, 1, 1, 1)
        struct.pack_into("<hh", header, 70, 16, 32)
        struct.pack_into("<4f", header, 76, 1, 1, 1, 1)
        struct.pack_into("<f", header, 108, 352)
        header[344:348] = b"n+1\0"
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        content = packer.compress(bytes(header))
        content += b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
        refused(Client(networks.url), content, "DATA-13")

    def test_hdf5_bomb(self, client: Client, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "bomb.h5", "w") as file:
            file.create_dataset(
                "kspace", (1000, 16, 640, 368), np.complex64, chunks=(1, 1, 640, 368),
                compression="gzip",
            )  # fmt: skip
        refused(client, (tmp_path / "bomb.h5").read_bytes(), "DATA-13")

    @pytest.mark.parametrize("kind", ["external link", "external storage", "virtual"])
    def test_hdf5_that_points_elsewhere(self, kind: str, client: Client, tmp_path: Path) -> None:
        secret = tmp_path / "secret.h5"
        with h5py.File(secret, "w") as file:
            file["kspace"] = make_samples(1)
        with h5py.File(tmp_path / "link.h5", "w") as file:
            if kind == "external link":
                file["kspace"] = h5py.ExternalLink(str(secret), "kspace")
            elif kind == "external storage":
                file.create_dataset(
                    "kspace", (1, 4, 4, 4), np.complex64,
                    external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)],
                )  # fmt: skip
            else:
                layout = h5py.VirtualLayout((1, 6, 64, 56), np.complex64)
                layout[:] = h5py.VirtualSource(str(secret), "kspace", (1, 6, 64, 56))
                file.create_virtual_dataset("kspace", layout)
        refused(client, (tmp_path / "link.h5").read_bytes(), "DATA-13")

    @pytest.mark.parametrize("wrapping", ["bare", "npy", "zip"])
    def test_pickles_are_never_opened(self, wrapping: str, client: Client, tmp_path: Path) -> None:
        marker = tmp_path / "opened"

        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (marker,)

        content = pickle.dumps(Trap())
        if wrapping == "npy":
            stream = io.BytesIO()
            np.save(stream, np.array([Trap()], dtype=object), allow_pickle=True)
            content = stream.getvalue()
        elif wrapping == "zip":  # as torch.save writes
            content = zipped(**{"archive/data.pkl": content, "archive/version": b"3"})
        found = client.run(content)
        assert found["state"] == "failed"
        assert found["error"]["fix"]
        assert not marker.exists()

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"\xff\xd8\xff\xe0" + bytes(2000), "a picture"),
            (b"\x89PNG\r\n\x1a\n" + bytes(2000), "a picture"),
            (b"%PDF-1.7" + bytes(2000), "a PDF"),
            (b"MZ" + bytes(2000), "does not know"),
            (b"<html>hello</html>", "does not know"),
            (b"\0", "does not know"),
        ],
    )
    def test_other_kinds_of_files(self, content: bytes, said: str, client: Client) -> None:
        error = refused(client, content, "SERVE-08")
        assert said in error["message"]
        assert "HDF5" in error["fix"]

    def test_raw_data_that_is_wrong(self, client: Client, tmp_path: Path, raw: bytes) -> None:
        path, samples = tmp_path / "a.h5", make_samples(2)
        samples[1, 2, 3, 4] = np.nan
        assert "not finite" in refused(client, fastmri(path, samples), "DATA-04")["message"]
        refused(client, raw[: len(raw) // 2], "DATA-02")
        with h5py.File(path, "w") as file:
            file["kspace"] = np.abs(make_samples(1))
        refused(client, path.read_bytes(), "DATA-03")
        with h5py.File(path, "w") as file:
            file["image"] = np.zeros((4, 4))
        refused(client, path.read_bytes(), "DATA-03")
        cropped = fastmri(path, make_samples(2))
        with h5py.File(io.BytesIO(cropped)) as file:
            header, kept = file["ismrmrd_header"][()], file["kspace"][:, :, :40]
        with h5py.File(path, "w") as file:
            file["kspace"], file["ismrmrd_header"] = kept, header
        error = refused(client, path.read_bytes(), "DATA-14")
        assert "uncropped" in error["fix"]

    def test_images_for_a_method_of_raw_data(self, client: Client) -> None:
        header = bytearray(352)
        struct.pack_into("<i", header, 0, 348)
        found = client.run(bytes(header), source="wavelet")
        assert found["error"]["code"] == "SERVE-08"
        assert "raw data" in found["error"]["fix"]

    def test_names_of_patients_go_nowhere(
        self, client: Client, serving: ServerProcess, tmp_path: Path
    ) -> None:
        path = tmp_path / "raw.mrd"
        write_kspace(make_scan(make_samples(1)), path, layout="ismrmrd")
        with h5py.File(path, "r+") as file:
            text = file["dataset/xml"][0]
            start = text.index(b"<encoding>")
            subject = (
                f"<subjectInformation><patientName>{PLANTED}^Anna</patientName>"
                f"<patientID>{PLANTED}77</patientID></subjectInformation>"
            )
            file["dataset/xml"][0] = text[:start] + subject.encode() + text[start:]
        found = client.run(path.read_bytes(), source="zero-filled")
        assert found["state"] == "done", found["error"]
        for result in found["results"]:
            content = client.result(found["id"], result["name"])
            if result["name"].endswith(".gz"):
                content = zlib.decompress(content, 31)
            if result["name"].endswith(".zip"):
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    content = b"".join(map(archive.read, archive.namelist()))
            assert PLANTED.encode() not in content
        assert PLANTED not in serving.log.read_text()
        for file in serving.data.rglob("*"):
            assert file.is_dir() or PLANTED.encode() not in file.read_bytes()


class TestRequests:
    def test_sizes_that_cannot_be(self, client: Client) -> None:
        for size, status in ((0, 422), (-1, 422), (10**10, 422), (2**60, 422), ("9", 422)):
            assert client.ask("POST", "/v1/jobs", {"size": size}).status == status

    def test_bodies_that_are_no_request(self, client: Client) -> None:
        json_type = {"Content-Type": "application/json"}
        for body in (b"", b"{", b"[]", b'{"size": 1, "more": 2}', b"\xff", b'{"size": NaN}'):
            answer = client.ask("POST", "/v1/jobs", body, json_type)
            assert answer.status in (400, 422)
            assert answer.code == "SERVE-09"
        large = b'{"size": 1, "name": "' + b"x" * 100_000 + b'"}'
        assert client.ask("POST", "/v1/jobs", large, json_type).status == 413

    def test_jobs_of_others(self, client: Client, bob: Client) -> None:
        job = client.create(10, name="mine")["id"]
        for method, path in (
            ("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/events"),
            ("GET", "/results/report.json"),
        ):  # fmt: skip
            assert bob.ask(method, f"/v1/jobs/{job}{path}").status == 404
        assert bob.patch(job, 0, b"x").status == 404
        prompts = bob.ask("POST", f"/v1/jobs/{job}/prompts", {"points": [[1, 1, 1, 1]]})
        assert prompts.status == 404
        assert job not in [j["id"] for j in bob.ask("GET", "/v1/jobs").json()["jobs"]]
        assert client.job(job)["offset"] == 0

    @pytest.mark.parametrize(
        "authorization",
        [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic YWxpY2U6eA==", "bearer\talice",
         "Bearer alice", "Bearer alice:alice-token-of-some-length", "Bearer \xff"],
    )  # fmt: skip
    def test_bad_tokens(self, authorization: str | None, client: Client) -> None:
        stranger = Client(f"http://{client.address[0]}:{client.address[1]}")
        headers = {} if authorization is None else {"Authorization": authorization}
        for method, path in (("GET", "/v1/jobs"), ("GET", "/metrics"), ("GET", "/v1/service"),
                             ("POST", "/v1/jobs"), ("GET", "/openapi.json")):  # fmt: skip
            answer = stranger.ask(method, path, None, headers)
            assert (answer.status, answer.code) == (401, "SERVE-01")
        for path in ("/", "/health", "/ready", "/page/page.js"):
            assert stranger.ask("GET", path, None, headers).status == 200

    def test_scripts_in_names_and_headers(self, client: Client) -> None:
        script = "<script>alert(1)</script>"
        made = client.ask("POST", "/v1/jobs", {"size": 5, "name": script})
        assert made.headers["content-type"] == "application/json"
        assert made.json()["name"] == script
        assert client.ask("POST", "/v1/jobs", {"size": 5, "name": "a\r\nX: 1"}).status == 422
        for path in (f"/v1/jobs/{script}", "/%3Cscript%3E", "/page/%3Cscript%3E.js"):
            answer = client.ask("GET", path)
            assert b"<script" not in answer.body
            assert answer.headers["content-type"] == "application/json"
        page = client.ask("GET", "/")
        assert "script-src 'self';" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
        assert b"<script>" not in page.body  # none inline
        marked = client.ask("GET", "/v1/jobs", None, {"Idempotency-Key": script, "X-Y": script})
        assert script.encode() not in str(marked.headers).encode()

    def test_nothing_is_fetched(self, client: Client, tmp_path: Path) -> None:
        """No address that a request or a file names is ever connected to."""
        with socket.create_server(("127.0.0.1", 0)) as trap:
            url = f"http://127.0.0.1:{trap.getsockname()[1]}/x"
            asked = {"size": 10, "source": url}
            assert client.ask("POST", "/v1/jobs", asked).status == 404
            assert client.ask("POST", "/v1/jobs", {"size": 10, "url": url}).status == 422
            client.create(10, name=url)
            client.ask("GET", url)
            path = tmp_path / "dtd.h5"
            with h5py.File(io.BytesIO(fastmri(path, make_samples(1)))) as file:
                samples = file["kspace"][()]
            with h5py.File(path, "w") as file:
                file["kspace"] = samples
                file["ismrmrd_header"] = (
                    f'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY e SYSTEM "{url}">]><r>&e;</r>'
                )
            refused(client, path.read_bytes(), "DATA-13")
            refused(client, f"<a href='{url}'>".encode(), "SERVE-08")
            trap.setblocking(False)
            with pytest.raises(BlockingIOError):  # nobody waits to be accepted
                trap.accept()

    def test_pages_of_other_sites(self, tight: Client) -> None:
        """Without tokens a browser must not be talked into asking for somebody else."""
        time.sleep(1)
        own = f"127.0.0.1:{tight.address[1]}"
        for headers, status in (
            ({"Host": "evil.example"}, 403),
            ({"Host": f"evil.example:{tight.address[1]}"}, 403),
            ({"Host": "127.0.0.1.evil.example"}, 403),
            ({"Host": own, "Origin": "https://evil.example"}, 403),
            ({"Host": own, "Origin": "null"}, 403),
            ({"Host": own, "Origin": f"http://{own}"}, 200),
            ({"Host": f"localhost:{tight.address[1]}"}, 200),
        ):
            assert tight.ask("GET", "/v1/jobs", None, headers).status == status
        plain = {"Content-Type": "text/plain", "Origin": "https://evil.example"}
        assert tight.ask("POST", "/v1/jobs", b'{"size": 1}', plain).status == 403


class TestSlowClients:
    def test_a_head_that_never_ends(self, tight: Client) -> None:
        for start in (b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "):
            with socket.create_connection(tight.address, timeout=15) as connection:
                connection.sendall(start)
                begun = time.monotonic()
                assert connection.recv(1000) == b""  # closed on us
                assert 1 < time.monotonic() - begun < 10

    def test_a_body_that_never_ends(self, tight: Client) -> None:
        time.sleep(1)
        job = tight.create(1000)["id"]
        head = (
            f"PATCH /v1/jobs/{job}/content HTTP/1.1\r\nHost: 127.0.0.1\r\nUpload-Offset: 0\r\n"
            "Content-Type: application/octet-stream\r\nContent-Length: 1000\r\n\r\n"
        )
        with socket.create_connection(tight.address, timeout=15) as connection:
            connection.sendall(head.encode() + b"x" * 10)
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert tight.job(job)["offset"] == 0

    def test_others_are_served_meanwhile(self, tight: Client) -> None:
        time.sleep(1)
        waiting = [socket.create_connection(tight.address) for _ in range(50)]
        for connection in waiting:
            connection.sendall(b"GET / HTTP/1.1\r\n")
        start = time.monotonic()
        assert tight.ask("GET", "/health").status == 200
        assert time.monotonic() - start < 2
        for connection in waiting:
            connection.close()
