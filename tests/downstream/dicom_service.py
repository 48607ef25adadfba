"""A service with doors for DICOM, peers in processes of their own, and objects."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate

import core_mri
from core_mri.files.dicom_write import write_dicom_series
from core_mri.physics.phantoms import phantom_volume
from data_registry.deidentify.identifiers import keyed_uid, load_key
from tests.downstream.conftest import ALICE, BOB
from tests.downstream.serving_client import Client, Reply, ServerProcess

PEER = Path(__file__).with_name("dicom_peer.py")
NAME, TITLE = "Ywklmpqr^Zxcv", "CORE-MRI"
MPEG4 = "1.2.840.10008.1.2.4.102"
HAS_DIMSE = importlib.util.find_spec("pynetdicom") is not None
needs_dimse = pytest.mark.skipif(not HAS_DIMSE, reason="pynetdicom is not installed (dimse)")
needs_client = pytest.mark.skipif(
    importlib.util.find_spec("dicomweb_client") is None,
    reason="dicomweb-client is not installed (test)",
)


def dcmtk(program: str) -> str | None:
    """Where dcmtk's is; pynetdicom installs programs of the same names beside Python."""
    ours = Path(sys.executable).parent
    folders = os.environ.get("PATH", "").split(os.pathsep)
    return shutil.which(program, path=os.pathsep.join(f for f in folders if Path(f) != ours))


needs_dcmtk = pytest.mark.skipif(
    dcmtk("storescu") is None, reason="dcmtk is not installed (apt-get install dcmtk)"
)


class DicomServer(ServerProcess):
    """A service of two users; objects over DIMSE are Alice's."""

    def __init__(self, folder: Path) -> None:
        tokens = folder / "tokens"
        tokens.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
        tokens.chmod(0o600)
        words = ["wavelet", "--token-file", str(tokens), "--upload-gb", "0.01"]
        if HAS_DIMSE:
            words += ["--dimse", "--dimse-port", "0", "--dimse-user", "alice"]
        super().__init__(folder, *words)
        self.dimse = ""
        if HAS_DIMSE:
            assert self.process.stdout is not None
            self.dimse = self.process.stdout.readline().strip().partition("@")[2]

    def new_uid(self, uid: str) -> str:
        """What de-identification makes of a UID."""
        return keyed_uid(load_key(self.data / "deidentification.key", create=False), uid)


def make_series(folder: Path, seed: str) -> list[Path]:
    """Slices of a phantom with a position and a name."""
    volume = phantom_volume("abdomen", len(seed), size=48, num_slices=4)[0]
    affine = np.array(volume.affine)
    affine[:3, :3] = affine[:3, :3] @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    affine[:3, 3] = (-31.5, 12.25, 8.0)
    moved = core_mri.volume.Volume(volume.array, affine)
    facts = {"PatientName": NAME, "PatientID": f"{seed}-4711", "StudyDate": "20200102"}
    return write_dicom_series(moved, folder, facts=facts, seed=seed)


def peer(*words: object) -> Any:
    """The answer of a process that cannot import core-mri."""
    kept = [
        p for p in os.environ.get("PYTHONPATH", "").split(":") if (Path(p) / "core_mri").is_dir()
    ]
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(":") if p not in kept]
    done = subprocess.run(
        [sys.executable, str(PEER), *map(str, words)], capture_output=True, timeout=120,
        check=False, cwd="/", env=os.environ | {"PYTHONPATH": ":".join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def multipart(parts: list[bytes], kind: str = "application/dicom", boundary: str = "b0") -> bytes:
    head = f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()


MEDIA = 'multipart/related; type="application/dicom"; boundary=b0'


def post(client: Client, parts: list[bytes], path: str = "", **changes: Any) -> Reply:
    body = changes.get("body", multipart(parts, changes.get("kind", "application/dicom")))
    headers = {"Content-Type": changes.get("media", MEDIA)}
    return client.ask("POST", f"/dicomweb/studies{path}", body, headers)


def get(client: Client, path: str, accept: str = "*/*") -> Reply:
    return client.ask("GET", f"/dicomweb{path}", None, {"Accept": accept})


def changed(path: Path, syntax: str = "", **elements: Any) -> bytes:
    """A slice with other elements or in another transfer syntax."""
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if syntax:
        dataset.PixelData = encapsulate([bytes(100)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def check_round_trip(server: DicomServer, sent: list[Path], folder: Path) -> None:
    """Pixels, geometry and references are those that were sent; names are not."""
    came = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    went = [pydicom.dcmread(path) for path in sent]
    assert len(came) == len(went)
    by_uid = {str(one.SOPInstanceUID): one for one in came}
    for one in went:
        other = by_uid[server.new_uid(str(one.SOPInstanceUID))]
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            assert other[keyword].value == server.new_uid(str(one[keyword].value))
        assert other.PixelData == one.PixelData
        assert other.file_meta.TransferSyntaxUID == one.file_meta.TransferSyntaxUID
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert other[keyword].value == one[keyword].value
        assert str(other.PatientName) != str(one.PatientName)
    sent_volume = core_mri.read_volume(sent[0].parent)
    came_volume = core_mri.read_volume(folder)
    assert came_volume.same_grid(sent_volume)
    np.testing.assert_array_equal(came_volume.array, sent_volume.array)


def fetch(client: Client, url: str) -> Reply:
    """What a RetrieveURL leads to."""
    return get(client, url.partition("/dicomweb")[2])


def parts_of(answer: Reply) -> list[bytes]:
    assert answer.status == 200, answer.body
    boundary = answer.headers["content-type"].partition("boundary=")[2].encode()
    parts = answer.body.split(b"--" + boundary)[1:-1]
    return [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]


def unpack(answer: Reply, folder: Path) -> None:
    folder.mkdir()
    for number, part in enumerate(parts_of(answer)):
        (folder / f"{number:04d}.dcm").write_bytes(part)


def wait_for(client: Client, study: str) -> None:
    """Objects over DIMSE are looked at after their association."""
    deadline = time.monotonic() + 60
    while get(client, f"/studies/{study}").status == 404:
        assert time.monotonic() < deadline
        time.sleep(0.2)
