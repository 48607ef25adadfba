"""DIMSE: pynetdicom and dcmtk as peers, and what they may not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pydicom
import pytest

from downstream.serving.dicom.dimse import Dimse
from downstream.serving.neighbors import Neighbors
from tests.downstream.dicom_service import (
    MPEG4,
    TITLE,
    DicomServer,
    changed,
    check_round_trip,
    dcmtk,
    get,
    make_series,
    needs_dcmtk,
    needs_dimse,
    peer,
    unpack,
    wait_for,
)
from tests.downstream.serving_client import OURS, Client, Reply


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
        self, dicom_server: DicomServer, alice: Client, tmp_path: Path
    ) -> None:
        sent = make_series(tmp_path / "sent", "dimse-one")
        done = peer("dimse", dicom_server.dimse, TITLE, "store", *sent)
        assert done["echo"] == 0
        assert done["statuses"] == [0] * 4
        study = dicom_server.new_uid(str(pydicom.dcmread(sent[0]).StudyInstanceUID))
        wait_for(alice, study)
        asked = ["SeriesInstanceUID=", "Modality=MR", "NumberOfSeriesRelatedInstances="]
        asked = [f"StudyInstanceUID={study}", *asked]
        found = peer("dimse", dicom_server.dimse, TITLE, "find", "SERIES", *asked)
        (answer,) = found["answers"]
        assert answer["00201209"]["Value"] == [4]
        assert found["statuses"] == [0xFF00, 0]
        unpack(get(alice, f"/studies/{study}"), tmp_path / "came")
        check_round_trip(dicom_server, sent, tmp_path / "came")

    @needs_dcmtk
    def test_a_series_by_dcmtk(
        self, dicom_server: DicomServer, alice: Client, tmp_path: Path
    ) -> None:
        host, _, port = dicom_server.dimse.rpartition(":")
        sent = make_series(tmp_path / "sent", "dcmtk")
        call = ["-aec", TITLE, host, port]
        done = subprocess.run(
            [str(dcmtk("storescu")), "-v", *call, *map(str, sent)],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        study = dicom_server.new_uid(str(pydicom.dcmread(sent[0]).StudyInstanceUID))
        wait_for(alice, study)
        found = subprocess.run(
            [str(dcmtk("findscu")), "-S", *call, "-k", "QueryRetrieveLevel=IMAGE", "-k",
             f"StudyInstanceUID={study}", "-k", "SOPInstanceUID", "-k", "InstanceNumber"],
            capture_output=True, timeout=60, check=True,
        )  # fmt: skip
        said = (found.stdout + found.stderr).decode()
        for path in sent:
            assert dicom_server.new_uid(str(pydicom.dcmread(path).SOPInstanceUID)) in said
        unpack(get(alice, f"/studies/{study}"), tmp_path / "came")
        check_round_trip(dicom_server, sent, tmp_path / "came")
        wrong = subprocess.run(
            [str(dcmtk("storescu")), "-aec", "OTHER", host, port, str(sent[0])],
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert wrong.returncode != 0

    def test_what_is_not_taken(self, dicom_server: DicomServer) -> None:
        assert peer("dimse", dicom_server.dimse, "OTHER", "propose", MPEG4) == {
            "established": False
        }
        jpeg = "1.2.840.10008.1.2.4.70"
        assert peer("dimse", dicom_server.dimse, TITLE, "propose", MPEG4, jpeg)["accepted"] == [
            jpeg
        ]

    def test_an_object_beyond_the_limit(
        self, dicom_server: DicomServer, alice: Client, series: list[Path], tmp_path: Path
    ) -> None:
        (tmp_path / "large.dcm").write_bytes(changed(series[0], PixelData=bytes(15_000_000)))
        done = peer("dimse", dicom_server.dimse, TITLE, "store", tmp_path / "large.dcm")
        assert done["statuses"] == [-1]
        assert alice.ask("GET", "/ready").status == 200
        assert peer("dimse", dicom_server.dimse, TITLE, "propose", "1.2.840.10008.1.2")["echo"] == 0

    def test_bobs_objects_are_not_found(
        self, dicom_server: DicomServer, dicom_bob: Client, mixed: tuple[Path, Reply]
    ) -> None:
        study = mixed[1].json()["00081190"]["Value"][0].rpartition("/")[2]
        assert get(dicom_bob, f"/studies/{study}").status == 200
        found = peer(
            "dimse", dicom_server.dimse, TITLE, "find", "STUDY", f"StudyInstanceUID={study}"
        )
        assert found["answers"] == []

    @pytest.mark.parametrize("level", ["PATIENT", ""])
    def test_queries_that_are_none(self, level: str, dicom_server: DicomServer) -> None:
        found = peer("dimse", dicom_server.dimse, TITLE, "find", level, "PatientID=*")
        assert found["statuses"] == [0xA900]

    def test_users_that_are_not_there(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "core_mri", "serve", "wavelet", "--dimse", "--dimse-user", "eve",
             "--data-dir", str(tmp_path / "d")],
            capture_output=True, timeout=60, check=False, env=OURS,
        )  # fmt: skip
        assert done.returncode == 2
        assert b"local" in done.stderr
