"""DICOMweb: what clients in processes of their own store, find and fetch."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames

import core_mri
from core_mri.errors import ServingError
from core_mri.files import write_kspace
from downstream.serving.dicom.holdings import matches
from downstream.serving.dicom.index import index_name, write_indexes
from downstream.serving.dicom.media import Acceptable, parse_accept
from downstream.serving.dicom.multipart import split
from tests.downstream.conftest import BOB
from tests.downstream.dicom_service import (
    NAME,
    DicomServer,
    check_round_trip,
    fetch,
    get,
    make_series,
    multipart,
    needs_client,
    parts_of,
    peer,
    post,
    unpack,
)
from tests.downstream.serving_client import Client, ServerProcess
from tests.downstream.test_reconstruct import LPS_AFFINE, make_samples, make_scan


class TestDicomWeb:
    @needs_client
    def test_a_series_comes_back_through_a_client(
        self, dicom_server: DicomServer, dicom_bob: Client, tmp_path: Path
    ) -> None:
        sent = make_series(tmp_path / "sent", "roundtrip")
        (tmp_path / "came").mkdir()
        found = peer("web", dicom_server.url, BOB, tmp_path / "came", *sent)
        assert len(found["stored"]["00081199"]["Value"]) == 4
        assert "0008119A" not in found["stored"]
        (study,) = found["studies"]
        assert study["00201208"]["Value"] == [4]
        assert study["00080061"]["Value"] == ["MR"]
        assert [len(found[name]) for name in ("series", "instances", "metadata")] == [1, 4, 4]
        assert found["same"]
        assert found["frame"]
        assert NAME.partition("^")[0] not in json.dumps(found)
        assert NAME.partition("^")[0] not in dicom_server.log.read_text()
        check_round_trip(dicom_server, sent, tmp_path / "came")
        job = dicom_bob.ask("GET", "/v1/jobs").json()["jobs"][0]["id"]
        assert dicom_bob.ask("DELETE", f"/v1/jobs/{job}").status == 204
        assert get(dicom_bob, f"/studies/{study['0020000D']['Value'][0]}").status == 404

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


class TestOwners:
    def test_other_peoples_studies_look_like_none(
        self, alice: Client, dicom_bob: Client, study: str
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
            refused = get(dicom_bob, path)
            assert (refused.status, refused.code) == (404, "SERVE-07"), path
        below = f"/studies/{study}"
        for path in (
            "/studies", "/series", "/instances", f"{below}/series", f"{below}/instances",
            f"/studies?StudyInstanceUID={study}",
        ):  # fmt: skip
            assert get(dicom_bob, path).json() == [], path
            assert get(alice, path).json(), path

    def test_nobody_comes_without_a_token(self, dicom_server: DicomServer, study: str) -> None:
        stranger = Client(dicom_server.url)
        for path in ("/studies", f"/studies/{study}", "/instances"):
            assert get(stranger, path).status == 401
        assert post(stranger, [b"x"]).status == 401

    def test_one_upload_of_two_people_stays_two(
        self, alice: Client, dicom_bob: Client, study: str, series: list[Path]
    ) -> None:
        """The same study under the same new UID; what one erases the other keeps."""
        answer = post(dicom_bob, [series[0].read_bytes()])
        assert answer.status == 200
        assert len(get(dicom_bob, f"/studies/{study}/instances").json()) == 1
        assert len(get(alice, f"/studies/{study}/instances").json()) == 4
        job = dicom_bob.ask("GET", "/v1/jobs").json()["jobs"][0]
        assert dicom_bob.ask("DELETE", f"/v1/jobs/{job['id']}").status == 204
        assert get(dicom_bob, f"/studies/{study}").status == 404
        assert get(alice, f"/studies/{study}").status == 200


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
