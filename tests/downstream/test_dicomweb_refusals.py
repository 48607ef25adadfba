"""What strangers send over DICOMweb: each is refused, in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest

from tests.downstream.dicom_service import (
    MEDIA,
    MPEG4,
    DicomServer,
    changed,
    get,
    multipart,
    parts_of,
    post,
)
from tests.downstream.serving_client import Client, Reply


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
        self, dicom_server: DicomServer, mixed: tuple[Path, Reply]
    ) -> None:
        sent, answer = mixed
        assert answer.status == 202, answer.body
        stored = answer.json()
        (one,) = stored["00081199"]["Value"]
        assert one["00081155"]["Value"] == [
            dicom_server.new_uid(str(pydicom.dcmread(sent).SOPInstanceUID))
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
