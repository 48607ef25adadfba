"""DICOMweb and DIMSE: peers in processes of their own, and what strangers send."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames

import core_mri
from core_mri.errors import ServingError
from core_mri.files import write_kspace
from core_mri.files.dicom_write import write_dicom_series
from core_mri.physics.phantoms import phantom_volume
from data_registry.deidentify.identifiers import keyed_uid, load_key
from downstream.serving.dicom.dimse import Dimse
from downstream.serving.dicom.holdings import matches
from downstream.serving.dicom.index import index_name, write_indexes
from downstream.serving.dicom.media import Acceptable, parse_accept
from downstream.serving.dicom.multipart import split
from downstream.serving.neighbors import Neighbors
from tests.downstream.conftest import ALICE, BOB
from tests.downstream.serving_client import OURS, Client, Reply, ServerProcess
from tests.downstream.test_reconstruct import LPS_AFFINE, make_samples, make_scan

PEER = Path(__file__).with_name("dicom_peer.py")
NAME, TITLE = "Ywklmpqr^Zxcv", "CORE-MRI"
MPEG4 = "1.2.840.10008.1.2.4.102"
HAS_DIMSE = importlib.util.find_spec("pynetdicom") is not None
needs_dimse = pytest.mark.skipif(not HAS_DIMSE, reason="pynetdicom is not installed (dimse)")
needs_client = pytest.mark.skipif(
    importlib.util.find_spec("dicomweb_client") is None,
    reason="dicomweb-client is not installed (test)",
)
needs_dcmtk = pytest.mark.skipif(
    shutil.which("storescu") is None, reason="dcmtk is not installed (apt-get install dcmtk)"
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DicomServer]:
    process = DicomServer(tmp_path_factory.mktemp("dicom"))
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="module")
def alice(server: DicomServer) -> Client:
    return Client(server.url, ALICE)


@pytest.fixture(scope="module")
def bob(server: DicomServer) -> Client:
    return Client(server.url, BOB)


def make_series(folder: Path, seed: str) -> list[Path]:
    """Slices of a phantom with a position and a name."""
    volume = phantom_volume("abdomen", len(seed), size=48, num_slices=4)[0]
    affine = np.array(volume.affine)
    affine[:3, :3] = affine[:3, :3] @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    affine[:3, 3] = (-31.5, 12.25, 8.0)
    moved = core_mri.volume.Volume(volume.array, affine)
    facts = {"PatientName": NAME, "PatientID": f"{seed}-4711", "StudyDate": "20200102"}
    return write_dicom_series(moved, folder, facts=facts, seed=seed)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_series(tmp_path_factory.mktemp("series") / "s", "first")


@pytest.fixture(scope="module")
def study(server: DicomServer, alice: Client, series: list[Path]) -> str:
    """Stored by Alice: the new study UID."""
    answer = post(alice, [path.read_bytes() for path in series])
    assert answer.status == 200, answer.body
    return server.new_uid(str(pydicom.dcmread(series[0]).StudyInstanceUID))


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


class TestDicomWeb:
    @needs_client
    def test_a_series_comes_back_through_a_client(
        self, server: DicomServer, bob: Client, tmp_path: Path
    ) -> None:
        sent = make_series(tmp_path / "sent", "roundtrip")
        (tmp_path / "came").mkdir()
        found = peer("web", server.url, BOB, tmp_path / "came", *sent)
        assert len(found["stored"]["00081199"]["Value"]) == 4
        assert "0008119A" not in found["stored"]
        (study,) = found["studies"]
        assert study["00201208"]["Value"] == [4]
        assert study["00080061"]["Value"] == ["MR"]
        assert [len(found[name]) for name in ("series", "instances", "metadata")] == [1, 4, 4]
        assert found["same"]
        assert found["frame"]
        assert NAME.partition("^")[0] not in json.dumps(found)
        assert NAME.partition("^")[0] not in server.log.read_text()
        check_round_trip(server, sent, tmp_path / "came")
        job = bob.ask("GET", "/v1/jobs").json()["jobs"][0]["id"]
        assert bob.ask("DELETE", f"/v1/jobs/{job}").status == 204
        assert get(bob, f"/studies/{study['0020000D']['Value'][0]}").status == 404

    @pytest.mark.data
    def test_a_real_series_keeps_its_geometry(
        self, alice: Client, shared_data: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "sent").mkdir()
        sent = [
            Path(shutil.copy(path, tmp_path / "sent"))
            for path in sorted((shared_data / "dicom" / "ge_head_pd_series").glob("*.dcm"))
        ]
        answer = post(alice, [path.read_bytes() for path in sent])
        assert answer.status == 200, answer.body
        unpack(fetch(alice, answer.json()["00081190"]["Value"][0]), tmp_path / "came")
        came = [pydicom.dcmread(path) for path in sorted((tmp_path / "came").iterdir())]
        assert len(came) == len(sent)
        ours, theirs = (core_mri.read_volume(tmp_path / name) for name in ("came", "sent"))
        assert ours.same_grid(theirs)
        np.testing.assert_array_equal(ours.array, theirs.array)

    def test_reconstructions_are_found_and_fetched(self, alice: Client, tmp_path: Path) -> None:
        scan = make_scan(make_samples(2), affine=LPS_AFFINE)
        write_kspace(scan, tmp_path / "raw.mrd", layout="ismrmrd")
        done = alice.run((tmp_path / "raw.mrd").read_bytes())
        assert done["state"] == "done", done["error"]
        with zipfile.ZipFile(io.BytesIO(alice.result(done["id"], "dicom.zip"))) as archive:
            objects = [archive.read(name) for name in sorted(archive.namelist())]
        study = str(pydicom.dcmread(io.BytesIO(objects[0])).StudyInstanceUID)
        (found,) = get(alice, f"/studies?StudyInstanceUID={study}").json()
        assert found["00201208"]["Value"] == [2]
        answer = get(alice, f"/studies/{study}", 'multipart/related; type="application/dicom"')
        assert parts_of(answer) == objects
        assert "not for diagnostic use" in json.dumps(
            get(alice, f"/studies/{study}/metadata").json()
        )

    def test_each_level_and_its_filters(self, alice: Client, study: str) -> None:
        (found,) = get(alice, f"/studies?0020000D={study}").json()
        patient = found["00100020"]["Value"][0]
        base = f"/studies/{study}"
        (series,) = get(alice, f"{base}/series").json()
        uid = series["0020000E"]["Value"][0]
        whole = get(alice, f"{base}/series/{uid}/instances").json()
        assert len(whole) == 4
        instance = whole[0]["00080018"]["Value"][0]
        for path, number in (
            (f"/studies?PatientID={patient}", 1),
            (f"/studies?PatientID={patient[:4]}*&ModalitiesInStudy=MR", 1),
            (f"/studies?PatientID={patient}&Modality=CT", 0),
            (f"/studies?StudyInstanceUID={study},1.2.3", 1),
            ("/studies?StudyInstanceUID=1.2.3", 0),
            (f"/series?SeriesInstanceUID={uid}&Modality=m?", 1),
            (f"{base}/instances?limit=3", 3),
            (f"{base}/instances?offset=3&fuzzymatching=true", 1),
            (f"{base}/instances?InstanceNumber=2", 1),
            (f"/instances?SOPInstanceUID={instance}", 1),
        ):
            assert len(get(alice, path).json()) == number, path
        assert "more" in get(alice, f"{base}/instances?limit=3").headers["warning"]
        (told,) = get(alice, f"/instances?SOPInstanceUID={instance}&includefield=all").json()
        assert "ImageOrientationPatient" in {pydicom.datadict.keyword_for_tag(tag) for tag in told}
        url = whole[0]["00081190"]["Value"][0]
        assert (
            pydicom.dcmread(io.BytesIO(parts_of(fetch(alice, url))[0])).SOPInstanceUID == instance
        )

    def test_the_same_upload_again_is_the_same_job(
        self, alice: Client, study: str, series: list[Path]
    ) -> None:
        """Clients that lose patience while objects are looked at send them again."""
        number = len(alice.ask("GET", "/v1/jobs").json()["jobs"])
        again = post(alice, [path.read_bytes() for path in series])
        assert again.status == 200
        assert study in again.json()["00081190"]["Value"][0]
        assert len(alice.ask("GET", "/v1/jobs").json()["jobs"]) == number
        for _ in range(2):  # what failed is tried again
            assert post(alice, [b"no DICOM"]).code == "DATA-03"
        assert len(alice.ask("GET", "/v1/jobs").json()["jobs"]) == number + 2

    def test_matching(self) -> None:
        known = {
            "00080020": {"vr": "DA", "Value": ["20200102"]},
            "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]},
            "0008103E": {"vr": "LO", "Value": ["T1 [post]"]},
        }
        for tag, wanted, expected in (
            ("00080020", "20200101-20200103", True), ("00080020", "-20200101", False),
            ("00080020", "20200102-", True), ("00080020", "2020*", False),
            ("00100010", "doe*", True), ("00100010", "Roe", False), ("00100010", "", True),
            ("0008103E", "T1 [post]", True), ("0008103E", "T1 p", False),
            ("00080050", "*", True), ("00080050", "1", False),
        ):  # fmt: skip
            assert matches(known, tag, wanted) is expected, (tag, wanted)


class TestMultipart:
    def test_parts_are_what_was_put_in(self, tmp_path: Path) -> None:
        parts = [b"", b"\r\n", b"--b", bytes(range(256)) * 50]
        for number, body in enumerate((multipart(parts), b"\r\n" + multipart(parts))):
            (tmp_path / "body").write_bytes(body)
            (out := tmp_path / str(number)).mkdir()
            split(tmp_path / "body", "b0", out)
            assert [path.read_bytes() for path in sorted(out.iterdir())] == parts

    def test_every_cut_is_seen(self, tmp_path: Path) -> None:
        body = multipart([b"first", b"second"])
        whole = len(body) - len(b"\r\n")
        for end in range(1, whole):
            (tmp_path / "body").write_bytes(body[:end])
            (out := tmp_path / str(end)).mkdir()
            with pytest.raises(ServingError, match="SERVE-37"):
                split(tmp_path / "body", "b0", out)

    def test_accept_headers(self) -> None:
        found = parse_accept('multipart/related; type="application/dicom"; transfer-syntax=*, a/b')
        assert found == [
            Acceptable("multipart/related", "application/dicom", "*"), Acceptable("a/b", "", ""),
        ]  # fmt: skip
        assert parse_accept("")[0].media == "*/*"


def test_frames_of_several_fragments(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(make_series(tmp_path / "s", "frames")[0])
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    dataset.NumberOfFrames = 3
    frames = [bytes([n]) * 100 for n in range(3)]
    dataset.PixelData = encapsulate(frames, fragments_per_frame=2)
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "mask.dcm")
    write_indexes(tmp_path)
    with gzip.open(tmp_path / index_name("mask.dcm")) as file:
        (one,) = json.load(file)
    content = (tmp_path / "mask.dcm").read_bytes()
    assert [len(frame) for frame in one["frames"]] == [2, 2, 2]
    assert [b"".join(content[a : a + n] for a, n in frame) for frame in one["frames"]] == frames


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    ["philips_shoulder_jpegls_near.dcm", "siemens_mip_j2k.dcm", "ge_neck_flair_implicit.dcm"],
)
def test_frames_lie_where_the_index_says(name: str, shared_data: Path, tmp_path: Path) -> None:
    shutil.copy(shared_data / "dicom" / name, tmp_path / "mask.dcm")
    write_indexes(tmp_path)
    with gzip.open(tmp_path / index_name("mask.dcm")) as file:
        (one,) = json.load(file)
    dataset = pydicom.dcmread(tmp_path / "mask.dcm")
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        expected = list(generate_frames(dataset.PixelData, number_of_frames=1))
    else:
        expected = [dataset.PixelData]
    content = (tmp_path / "mask.dcm").read_bytes()
    frames = [b"".join(content[a : a + size] for a, size in frame) for frame in one["frames"]]
    assert frames == expected
    assert "7FE00010" not in one["tags"]
    assert one["syntax"] == dataset.file_meta.TransferSyntaxUID


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


class TestOwners:
    def test_other_peoples_studies_look_like_none(
        self, alice: Client, bob: Client, study: str
    ) -> None:
        series, instance = (
            get(alice, f"/studies/{study}/{level}").json()[0][tag]["Value"][0]
            for level, tag in (("series", "0020000E"), ("instances", "00080018"))
        )
        one = f"/studies/{study}/series/{series}/instances/{instance}"
        for path in (
            f"/studies/{study}", f"/studies/{study}/series/{series}", one, f"{one}/frames/1",
            f"/studies/{study}/metadata", f"/studies/{study}/series/{series}/metadata",
            f"{one}/metadata",
        ):  # fmt: skip
            assert get(alice, path).status == 200, path
            refused = get(bob, path)
            assert (refused.status, refused.code) == (404, "SERVE-07"), path
        below = f"/studies/{study}"
        for path in (
            "/studies", "/series", "/instances", f"{below}/series", f"{below}/instances",
            f"/studies?StudyInstanceUID={study}",
        ):  # fmt: skip
            assert get(bob, path).json() == [], path
            assert get(alice, path).json(), path

    def test_nobody_comes_without_a_token(self, server: DicomServer, study: str) -> None:
        stranger = Client(server.url)
        for path in ("/studies", f"/studies/{study}", "/instances"):
            assert get(stranger, path).status == 401
        assert post(stranger, [b"x"]).status == 401

    def test_one_upload_of_two_people_stays_two(
        self, alice: Client, bob: Client, study: str, series: list[Path]
    ) -> None:
        """The same study under the same new UID; what one erases the other keeps."""
        answer = post(bob, [series[0].read_bytes()])
        assert answer.status == 200
        assert len(get(bob, f"/studies/{study}/instances").json()) == 1
        assert len(get(alice, f"/studies/{study}/instances").json()) == 4
        job = bob.ask("GET", "/v1/jobs").json()["jobs"][0]
        assert bob.ask("DELETE", f"/v1/jobs/{job['id']}").status == 204
        assert get(bob, f"/studies/{study}").status == 404
        assert get(alice, f"/studies/{study}").status == 200


@pytest.fixture(scope="module")
def mixed(bob: Client, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reply]:
    """Of Bob: a slice, a capture, and a slice in a transfer syntax that is not read."""
    first, second, third, _ = make_series(tmp_path_factory.mktemp("mixed") / "s", "mixed")
    capture = changed(second, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    return first, post(bob, [first.read_bytes(), capture, changed(third, MPEG4)])


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "status", "code", "said"),
        [
            ({"media": "application/dicom"}, 415, "SERVE-33", "media type"),
            ({"media": 'multipart/related; type="application/dicom"'}, 415, "SERVE-33", "media"),
            ({"media": MEDIA.replace("dicom", "dicom+json")}, 415, "SERVE-33", "dicom+json"),
            ({"kind": "image/jpeg"}, 409, "SERVE-33", "image/jpeg"),
            ({"body": b""}, 422, "SERVE-03", "empty"),
            ({"body": b"--b0\r\n\r\nx"}, 409, "SERVE-37", "ends within a part"),
            ({"body": b"--b0\r\nContent-Type: application/dicom"}, 409, "SERVE-37", "header"),
            ({"body": b"--other--"}, 409, "SERVE-37", "boundary"),
            ({"body": multipart([b"no DICOM at all"])}, 409, "DATA-03", "no DICOM"),
            ({"path": "/1.2.3"}, 409, "SERVE-35", "study of the request"),
        ],
    )
    def test_bodies(
        self, changes: dict[str, Any], status: int, code: str, said: str, alice: Client,
        series: list[Path],
    ) -> None:  # fmt: skip
        answer = post(alice, [series[0].read_bytes()], **changes)
        assert (answer.status, answer.code) == (status, code), answer.body
        assert said in str(answer.json())
        assert b"/dev/shm" not in answer.body

    def test_a_transfer_syntax_that_is_not_read(self, alice: Client, series: list[Path]) -> None:
        answer = post(alice, [changed(series[0], MPEG4)])
        assert (answer.status, answer.code) == (409, "SERVE-34"), answer.body
        message = answer.json()["error"]["message"]
        assert MPEG4 in message.partition("supported are")[0]
        for uid in ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"):
            assert uid in message.partition("supported are")[2]

    def test_some_are_stored_and_some_are_not(
        self, server: DicomServer, mixed: tuple[Path, Reply]
    ) -> None:
        sent, answer = mixed
        assert answer.status == 202, answer.body
        stored = answer.json()
        (one,) = stored["00081199"]["Value"]
        assert one["00081155"]["Value"] == [
            server.new_uid(str(pydicom.dcmread(sent).SOPInstanceUID))
        ]
        reasons = [item["00081197"]["Value"][0] for item in stored["0008119A"]["Value"]]
        assert sorted(reasons) == [0x0110, 0x0122]

    def test_an_upload_beyond_the_limit(self, alice: Client) -> None:
        large = multipart([bytes(10_100_000)])
        refused = post(alice, [], body=large)
        assert (refused.status, refused.code) == (413, "SERVE-04")
        connection_headers = {"Content-Type": MEDIA, "Transfer-Encoding": "chunked"}
        pieces = (large[n : n + 500_000] for n in range(0, len(large), 500_000))
        chunked = b"".join(f"{len(p):x}\r\n".encode() + p + b"\r\n" for p in pieces) + b"0\r\n\r\n"
        refused = alice.ask("POST", "/dicomweb/studies", chunked, connection_headers)
        assert (refused.status, refused.code) == (413, "SERVE-04")
        assert alice.ask("GET", "/ready").status == 200

    @pytest.mark.parametrize(
        "uid",
        ["..", "../..", "..%2f..%2fjobs.sqlite", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "1.2.%00",
         "1..2", "1.2.3/../../4", "a", "1" * 65, "1.2\n"],
    )  # fmt: skip
    def test_uids_that_climb_out(self, uid: str, alice: Client, study: str) -> None:
        uid = uid.replace("\n", "%0a")
        for path in (f"/studies/{uid}", f"/studies/{study}/series/{uid}",
                     f"/studies/{study}/series/1.2/instances/{uid}",
                     f"/studies/{uid}/metadata"):  # fmt: skip
            answer = get(alice, path)
            assert answer.status in (404, 422), (path, answer.status)
            assert answer.json()["error"]["code"] in ("SERVE-07", "SERVE-09")
        assert post(alice, [b"x"], f"/{uid}").status in (404, 405, 422)

    @pytest.mark.parametrize(
        ("query", "said"),
        [("Nonsense=1", "no attribute"), ("limit=-1", "no whole number"),
         ("offset=x", "no whole number"), ("includefield=Nope", "no attribute"),
         ("limit=99999999999", "no whole number")],
    )  # fmt: skip
    def test_queries(self, query: str, said: str, alice: Client) -> None:
        answer = get(alice, f"/studies?{query}")
        assert (answer.status, answer.code) == (400, "SERVE-36")
        assert said in answer.json()["error"]["message"]

    def test_a_query_against_its_path(self, alice: Client, study: str) -> None:
        answer = get(alice, f"/studies/{study}/series?StudyInstanceUID=1.2")
        assert (answer.status, answer.code) == (400, "SERVE-36")

    def test_what_clients_take(self, alice: Client, study: str) -> None:
        for path, accept, code, said in (
            ("/studies", "text/html", "SERVE-33", "application/dicom+json"),
            (f"/studies/{study}/metadata", "application/dicom+xml", "SERVE-33", "dicom+json"),
            (f"/studies/{study}", "image/jpeg", "SERVE-33", "multipart/related"),
            (f"/studies/{study}", 'multipart/related; type="image/jpeg"', "SERVE-33", "dicom"),
            (f"/studies/{study}", 'multipart/related; type="application/dicom"; '
             "transfer-syntax=1.2.840.10008.1.2.4.50", "SERVE-34", "1.2.840.10008.1.2.1"),
        ):  # fmt: skip
            answer = get(alice, path, accept)
            assert (answer.status, answer.code) == (406, code), accept
            assert said in answer.json()["error"]["message"]
        for syntax in ("*", "1.2.840.10008.1.2.1"):
            accept = f'multipart/related; type="application/dicom"; transfer-syntax={syntax}'
            assert len(parts_of(get(alice, f"/studies/{study}", accept))) == 4

    def test_frames_that_are_not_there(self, alice: Client, study: str) -> None:
        one = get(alice, f"/studies/{study}/instances").json()[0]
        url = one["00081190"]["Value"][0].partition("/dicomweb")[2]
        for frames, status in (("2", 404), ("0", 404), ("1,x", 422), ("-1", 422)):
            assert get(alice, f"{url}/frames/{frames}").status == status, frames


def test_peers_that_nobody_named_do_nothing_over_dimse() -> None:
    door = object.__new__(Dimse)  # what it decides before it looks at anything else
    door._neighbors = Neighbors(dimse=True, allow=("10.1.0.0/16",))
    stranger = SimpleNamespace(requestor=SimpleNamespace(address="10.2.0.1"))
    event = SimpleNamespace(assoc=stranger)
    assert door._echo(event) == door._store(event) == 0x0124
    assert list(door._find(event)) == [(0x0124, None)]
    stranger.requestor.address = "10.1.0.1"
    assert door._echo(event) == 0


@needs_dimse
class TestDimse:
    def test_a_series_by_another_library(
        self, server: DicomServer, alice: Client, tmp_path: Path
    ) -> None:
        sent = make_series(tmp_path / "sent", "dimse-one")
        done = peer("dimse", server.dimse, TITLE, "store", *sent)
        assert done["echo"] == 0
        assert done["statuses"] == [0] * 4
        study = server.new_uid(str(pydicom.dcmread(sent[0]).StudyInstanceUID))
        wait_for(alice, study)
        asked = ["SeriesInstanceUID=", "Modality=MR", "NumberOfSeriesRelatedInstances="]
        found = peer("dimse", server.dimse, TITLE, "find", "SERIES", f"StudyInstanceUID={study}",
                     *asked)  # fmt: skip
        (answer,) = found["answers"]
        assert answer["00201209"]["Value"] == [4]
        assert found["statuses"] == [0xFF00, 0]
        unpack(get(alice, f"/studies/{study}"), tmp_path / "came")
        check_round_trip(server, sent, tmp_path / "came")

    @needs_dcmtk
    def test_a_series_by_dcmtk(self, server: DicomServer, alice: Client, tmp_path: Path) -> None:
        host, _, port = server.dimse.rpartition(":")
        sent = make_series(tmp_path / "sent", "dcmtk")
        call = ["-aec", TITLE, host, port]
        done = subprocess.run(
            ["storescu", "-v", *call, *map(str, sent)], capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        study = server.new_uid(str(pydicom.dcmread(sent[0]).StudyInstanceUID))
        wait_for(alice, study)
        found = subprocess.run(
            ["findscu", "-S", *call, "-k", "QueryRetrieveLevel=IMAGE", "-k",
             f"StudyInstanceUID={study}", "-k", "SOPInstanceUID", "-k", "InstanceNumber"],
            capture_output=True, timeout=60, check=True,
        )  # fmt: skip
        said = (found.stdout + found.stderr).decode()
        for path in sent:
            assert server.new_uid(str(pydicom.dcmread(path).SOPInstanceUID)) in said
        unpack(get(alice, f"/studies/{study}"), tmp_path / "came")
        check_round_trip(server, sent, tmp_path / "came")
        wrong = subprocess.run(
            ["storescu", "-aec", "OTHER", host, port, str(sent[0])], capture_output=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert wrong.returncode != 0

    def test_what_is_not_taken(self, server: DicomServer) -> None:
        assert peer("dimse", server.dimse, "OTHER", "propose", MPEG4) == {"established": False}
        jpeg = "1.2.840.10008.1.2.4.70"
        assert peer("dimse", server.dimse, TITLE, "propose", MPEG4, jpeg)["accepted"] == [jpeg]

    def test_an_object_beyond_the_limit(
        self, server: DicomServer, alice: Client, series: list[Path], tmp_path: Path
    ) -> None:
        (tmp_path / "large.dcm").write_bytes(changed(series[0], PixelData=bytes(15_000_000)))
        done = peer("dimse", server.dimse, TITLE, "store", tmp_path / "large.dcm")
        assert done["statuses"] == [-1]
        assert alice.ask("GET", "/ready").status == 200
        assert peer("dimse", server.dimse, TITLE, "propose", "1.2.840.10008.1.2")["echo"] == 0

    def test_bobs_objects_are_not_found(
        self, server: DicomServer, bob: Client, mixed: tuple[Path, Reply]
    ) -> None:
        study = mixed[1].json()["00081190"]["Value"][0].rpartition("/")[2]
        assert get(bob, f"/studies/{study}").status == 200
        found = peer("dimse", server.dimse, TITLE, "find", "STUDY", f"StudyInstanceUID={study}")
        assert found["answers"] == []

    @pytest.mark.parametrize("level", ["PATIENT", ""])
    def test_queries_that_are_none(self, level: str, server: DicomServer) -> None:
        found = peer("dimse", server.dimse, TITLE, "find", level, "PatientID=*")
        assert found["statuses"] == [0xA900]

    def test_users_that_are_not_there(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "core_mri", "serve", "wavelet", "--dimse", "--dimse-user", "eve",
             "--data-dir", str(tmp_path / "d")],
            capture_output=True, timeout=60, check=False, env=OURS,
        )  # fmt: skip
        assert done.returncode == 2
        assert b"local" in done.stderr


def wait_for(client: Client, study: str) -> None:
    """Objects over DIMSE are looked at after their association."""
    deadline = time.monotonic() + 60
    while get(client, f"/studies/{study}").status == 404:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_masks_are_found_beside_their_images(networks: ServerProcess, tmp_path: Path) -> None:
    """Served weights segment what is stored; the mask belongs to the study and says to what."""
    client = Client(networks.url)
    series = make_series(tmp_path / "sent", "masked")
    answer = post(client, [path.read_bytes() for path in series])
    assert answer.status == 200, answer.body
    study = answer.json()["00081190"]["Value"][0].rpartition("/")[2]
    modalities = get(client, f"/studies/{study}/series").json()
    assert sorted(s["00080060"]["Value"][0] for s in modalities) == ["MR", "SEG"]
    (mask,) = get(client, f"/studies/{study}/instances?Modality=SEG").json()
    content = parts_of(fetch(client, mask["00081190"]["Value"][0]))[0]
    images = {item["00081155"]["Value"][0] for item in answer.json()["00081199"]["Value"]}
    referenced = pydicom.dcmread(io.BytesIO(content)).ReferencedSeriesSequence[0]
    named = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert named <= images
