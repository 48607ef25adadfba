"""Shared data over HTTP, from a server process of its own: parts, refusals, counts."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from core_mri.__main__ import main
from core_mri.errors import ConfigError, DataError
from data_registry import Registry
from data_registry.cohorts import freeze
from data_registry.export import ExportConfig, export
from data_registry.governance import share_ledger
from data_registry.governance import sharing as sharing_module
from data_registry.governance.agreements import accept, agreement_of, set_agreement
from data_registry.governance.downloads import fetched
from data_registry.governance.links import Link, parse, sign
from data_registry.governance.share_ledger import read, register
from data_registry.governance.sharing import Shared, Sharing
from data_registry.governance.withdrawal import WithdrawConfig, withdraw

ROOT = Path(__file__).resolve().parents[2]
BIG = 48_000_000


class Office:
    """A registry with an export that is served, and who asks for it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.out = folder / "reg", folder / "out"
        self.registry = Registry.open(self.path)
        freeze(self.registry, "knees", "region = 'knee'")
        export(ExportConfig(registry=self.path, out=self.out, format="nifti", cohort="knees"))
        with (self.out / "big.bin").open("wb") as file:
            file.write(random.Random(0).randbytes(BIG))
        (self.out / "way out").symlink_to(self.path / "sharing.jsonl")
        self.sharing = Sharing.open(self.registry)
        self.user = register(self.path, "Ada Example", "ada@example.org")
        accept(self.registry, self.user, "phantoms", "CC0-1.0")
        self.log = folder / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "core_mri", "data", "share", "serve", "--registry",
                 str(self.path), "--port", "0", "--per-link", "2"],
                stdout=subprocess.PIPE, stderr=log, text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.endswith("/share"), self.log.read_text()

    def issue(self, **changes: Any) -> Shared:
        options = {"now": time.time(), "seconds": 3600, "reviewed": (), "project_key": b""}
        user = changes.pop("user", self.user)
        return self.sharing.issue("knees", user, self.out, **{**options, **changes})

    def ask(
        self, link: str, name: str | None = None, method: str = "GET", body: bytes | None = None,
        place: str = "", **headers: str,
    ) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
        """Status, headers, body; of a file when `name` is given (quoted already)."""
        parts = urlsplit(self.url)
        path = parts.path + (place or ("" if name is None else f"/files/{name}"))
        connection = http.client.HTTPConnection(parts.netloc, timeout=30)
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(method, f"{path}?{link.partition('?')[2]}", body, sent)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, content

    def code(self, link: str, name: str | None = None, **more: Any) -> tuple[int, str]:
        status, _, body = self.ask(link, name, **more)
        return status, str(json.loads(body)["error"]["code"])

    def url_of(self, link: str, name: str) -> str:
        return f"{self.url}/files/{name}?{link.partition('?')[2]}"


@pytest.fixture(scope="module")
def office(
    scans: Path, run_ingest: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Office]:
    """The review of releases is asked for really in `test_share.py`."""
    folder = tmp_path_factory.mktemp("office")
    run_ingest(folder / "reg", scans)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing_module, "check_release", lambda *_: None)
        office = Office(folder)
        yield office
        office.process.send_signal(signal.SIGTERM)
        assert office.process.wait(20) == 0
        assert office.process.stdout is not None
        office.process.stdout.close()


@pytest.fixture(scope="module")
def link(office: Office) -> str:
    return office.issue().link


class TestFiles:
    def test_whole(self, office: Office, link: str) -> None:
        content = (office.out / "big.bin").read_bytes()
        status, headers, body = office.ask(link, "big.bin")
        assert (status, body) == (200, content)
        assert headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
        assert headers["accept-ranges"] == "bytes"
        assert headers["repr-digest"].startswith("sha-256=:")
        assert headers["referrer-policy"] == "no-referrer"
        assert "last-modified" not in headers

    def test_the_list_leads_to_every_file_but_the_mark(self, office: Office, link: str) -> None:
        status, _, body = office.ask(link)
        files = json.loads(body)["files"]
        assert status == 200
        there = {p.relative_to(office.out).as_posix() for p in office.out.rglob("*")
                 if p.is_file() and not p.is_symlink()}  # fmt: skip
        assert {file["name"] for file in files} == there - {"export.json"}
        for file in files:
            path, _, query = file["url"].partition("?")
            status, headers, _ = office.ask(query and f"?{query}", path.rpartition("/files/")[2],
                                            method="HEAD")  # fmt: skip
            assert (status, int(headers["content-length"])) == (200, file["bytes"])

    def test_any_cut_goes_on(self, office: Office, link: str) -> None:
        name = next(office.out.rglob("*.nii.gz")).relative_to(office.out).as_posix()
        content = (office.out / name).read_bytes()
        for cut in random.Random(2).sample(range(1, len(content)), 8):
            first = office.ask(link, quote(name), Range=f"bytes=0-{cut - 1}")
            rest = office.ask(link, quote(name), Range=f"bytes={cut}-", If_Range=first[1]["etag"])
            assert (first[0], rest[0]) == (206, 206)
            assert first[2] + rest[2] == content
            size = len(content)
            assert rest[1]["content-range"] == f"bytes {cut}-{size - 1}/{size}"

    def test_another_state_of_the_file_comes_whole(self, office: Office, link: str) -> None:
        name = "manifest.csv"
        whole = (office.out / name).read_bytes()
        _, headers, _ = office.ask(link, name)
        for stale in (f'"{"0" * 64}"', f"W/{headers['etag']}", "Thu, 26 Nov 2026 08:00:00 GMT"):
            status, _, body = office.ask(link, name, Range="bytes=5-", If_Range=stale)
            assert (status, body) == (200, whole)

    def test_conditions(self, office: Office, link: str) -> None:
        tag = office.ask(link, "manifest.csv", method="HEAD")[1]["etag"]
        assert office.ask(link, "manifest.csv", If_None_Match=tag)[::2] == (304, b"")
        status, _, body = office.ask(link, "manifest.csv", If_Match='"x"', Range="bytes=1-2")
        assert (status, json.loads(body)["error"]["code"]) == (412, "DATA-48")

    def test_a_range_outside(self, office: Office, link: str) -> None:
        status, headers, body = office.ask(link, "big.bin", Range=f"bytes={BIG}-")
        assert (status, headers["content-range"]) == (416, f"bytes */{BIG}")
        assert json.loads(body)["error"]["code"] == "DATA-48"

    def test_head_knows_no_range(self, office: Office, link: str) -> None:
        status, headers, body = office.ask(link, "big.bin", method="HEAD", Range="bytes=1-2")
        assert (status, headers["content-length"], body) == (200, str(BIG), b"")


class TestResume:
    @pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
    def test_curl_killed_half_way(self, office: Office, tmp_path: Path) -> None:
        shared = office.issue()
        got = tmp_path / "big.bin"
        words = ["curl", "-sS", "--fail", "-o", str(got), office.url_of(shared.link, "big.bin")]
        first = subprocess.Popen([*words, "--limit-rate", "40M"])
        deadline = time.monotonic() + 20
        while not got.exists() or got.stat().st_size < BIG // 4:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        first.kill()
        first.wait()
        cut = got.stat().st_size
        assert 0 < cut < BIG
        subprocess.run([*words, "-C", "-"], check=True)
        wanted_hash = hashlib.sha256((office.out / "big.bin").read_bytes()).hexdigest()
        assert hashlib.sha256(got.read_bytes()).hexdigest() == wanted_hash
        deadline = time.monotonic() + 10
        while (counts := fetched(office.path)[shared.nonce]).completed < 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (counts.files, counts.requests) == (1, 2)
        assert BIG <= counts.bytes < 2 * BIG

    def test_a_revoked_link_ends_while_it_runs(self, office: Office) -> None:
        shared = office.issue()
        connection = http.client.HTTPConnection(urlsplit(office.url).netloc, timeout=30)
        connection.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.request("GET", f"/share/files/big.bin?{shared.link.partition('?')[2]}")
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read(1 << 16)
        office.sharing.revoke(nonce=shared.nonce)
        time.sleep(2.2)
        with pytest.raises(http.client.IncompleteRead) as cut:
            answer.read()
        assert len(cut.value.partial) < BIG - (1 << 16)
        connection.close()

    def test_too_many_at_once(self, office: Office) -> None:
        shared = office.issue()
        open_ones = []
        for _ in range(2):
            one = http.client.HTTPConnection(urlsplit(office.url).netloc, timeout=30)
            one.request("GET", f"/share/files/big.bin?{shared.link.partition('?')[2]}")
            open_ones.append((one, one.getresponse()))
        status, headers, body = office.ask(shared.link, "big.bin")
        assert (status, json.loads(body)["error"]["code"]) == (429, "DATA-47")
        assert int(headers["retry-after"]) > 0
        assert office.ask(office.issue().link, "manifest.csv")[0] == 200  # another link may
        for one, answer in open_ones:
            answer.close()
            one.close()
        deadline = time.monotonic() + 10
        while office.ask(shared.link, "manifest.csv")[0] != 200:  # their places are free again
            assert time.monotonic() < deadline
            time.sleep(0.05)


class TestRefusals:
    def test_expired(self, office: Office) -> None:
        link = office.issue(now=time.time() - 100, seconds=60).link
        assert office.code(link, "manifest.csv") == (410, "DATA-23")

    def test_revoked(self, office: Office) -> None:
        shared = office.issue()
        assert office.ask(shared.link, "manifest.csv")[0] == 200
        assert main(["data", "share", "revoke", "--registry", str(office.path), "--link",
                     shared.nonce]) == 0  # fmt: skip
        for place in ("", "/agreements"):
            assert office.code(shared.link, place=place) == (410, "DATA-23")
        assert office.code(shared.link, "manifest.csv") == (410, "DATA-23")

    def test_forged(self, office: Office, link: str) -> None:
        said = parse(link, office.sharing._key)
        assert office.code(sign(said, bytes(32), "x"), "manifest.csv") == (403, "DATA-24")
        never = Link(**{**vars(said), "nonce": "0" * 32})
        own_key = sign(never, office.sharing._key, "x")
        assert office.code(own_key, "manifest.csv") == (403, "DATA-24")

    def test_altered(self, office: Office, link: str) -> None:
        later = re.sub(r"expires=(\d+)", "expires=99999999999", link)
        for changed in (later, link[:-1], link + "&path=x", "", "?", "?a=b", "?" + "&" * 999):
            assert office.code(changed, "manifest.csv") == (403, "DATA-24")

    def test_the_link_of_another_file(self, office: Office) -> None:
        one, other = sorted(p.relative_to(office.out).as_posix()
                            for p in office.out.rglob("*.nii.gz"))[:2]  # fmt: skip
        link = office.issue(path=one).link
        assert office.ask(link, quote(one))[0] == 200
        assert office.code(link, quote(other)) == (403, "DATA-24")
        assert office.code(link, "manifest.csv") == (403, "DATA-24")
        moved = link.replace(quote(one, safe=""), quote(other, safe=""))
        assert moved != link
        assert office.code(moved, quote(other)) == (403, "DATA-24")

    @pytest.mark.parametrize(
        "name",
        ["../reg/registry.json", "%2e%2e/reg/registry.json", "..%2Freg%2Fregistry.json",
         "/etc/hosts", "%2Fetc%2Fhosts", "way%20out", "export.json", "%00", "a%00.nii.gz",
         "x" * 5000, "", ".", "manifest.csv/", "./../out/../reg/sharing.jsonl", "%ff%fe"],
    )  # fmt: skip
    def test_ways_out(self, office: Office, link: str, name: str) -> None:
        status, code = office.code(link, name)
        assert (status, code) in ((403, "DATA-24"), (404, "DATA-49")), name
        if name not in ("", "."):
            assert code == "DATA-24"

    @pytest.mark.parametrize(
        ("method", "place"), [("POST", ""), ("GET", "/none"), ("PUT", "/files/x")]
    )
    def test_what_it_does_not_know(
        self, office: Office, link: str, method: str, place: str
    ) -> None:
        status, code = office.code(link, place=place, method=method)
        assert status in (404, 405)
        assert code == "DATA-49"

    def test_no_address_is_logged(self, office: Office, link: str) -> None:
        office.ask(link, "manifest.csv")
        log = office.log.read_text()
        assert parse(link, office.sharing._key).nonce not in log
        assert "signature" not in log

    def test_a_licence_that_forbids_it_since(
        self, office: Office, link: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = sharing_module.registered_sources(office.registry)["phantoms"]
        assert office.sharing.check(link, time.time()).cohort == "knees"
        for licence in ("LicenseRef-mine", "unknown"):  # as a card may say later
            now = {"phantoms": replace(known, licence=licence)}
            monkeypatch.setattr(sharing_module, "registered_sources", lambda _, now=now: now)
            with pytest.raises(DataError, match="DATA-28"):
                office.sharing.check(link, time.time())


class TestAgreements:
    def test_an_invitation_gives_the_agreements_alone(self, office: Office) -> None:
        user = register(office.path, "Eve", "eve@example.org")
        with pytest.raises(DataError, match="DATA-25"):
            office.issue(user=user)
        shared = office.issue(user=user, invite=True)
        for name in ("manifest.csv", None):
            assert office.code(shared.link, name) == (403, "DATA-25")
        (offer,) = json.loads(office.ask(shared.link, place="/agreements")[2])["agreements"]
        assert (offer["source"], offer["version"]) == ("phantoms", "CC0-1.0")
        assert (offer["standing"], "CC0-1.0" in offer["text"]) == ("missing", True)

        def accepts(**fields: str) -> tuple[int, bytes]:
            return office.ask(
                shared.link, method="POST", body=json.dumps(fields).encode(), place="/agreements",
                Content_Type="application/json",
            )[::2]  # fmt: skip

        for wrong in ({"source": "phantoms", "sha256": "0" * 64},
                      {"source": "other", "sha256": offer["sha256"]}):  # fmt: skip
            status, body = accepts(**wrong)
            assert (status, json.loads(body)["error"]["code"]) == (403, "DATA-25")
        for body in (b"", b"[]", b"{", b"[" * 9999, b"x" * 20_000, b"\xff"):
            status, code = office.code(shared.link, method="POST", body=body, place="/agreements",
                                       Content_Type="application/json")  # fmt: skip
            assert (status, code) == (400, "DATA-49")
        assert office.code(shared.link, "manifest.csv") == (403, "DATA-25")
        status, body = accepts(source="phantoms", sha256=offer["sha256"])
        assert status == 200
        assert json.loads(body)["agreements"][0]["standing"] == "accepted"
        assert office.ask(shared.link, "manifest.csv")[0] == 200
        # The private ledger knows by which link; the audit log does not.
        assert f'"nonce": "{shared.nonce}"' in (office.path / share_ledger.FILE).read_text()
        assert shared.nonce not in (office.path / "audit.jsonl").read_text()

    def test_a_person_accepts_on_the_page(self, office: Office) -> None:
        user = register(office.path, "Kim", "kim@example.org")
        shared = office.issue(user=user, invite=True)
        page = office.ask(shared.link, Accept="text/html")[2].decode()
        assert "I have read it and accept" in page
        assert "manifest.csv" not in page
        fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page))
        body = "&".join(f"{k}={quote(v)}" for k, v in fields.items()).encode()
        status, headers, _ = office.ask(
            shared.link, method="POST", body=body, place="/agreements",
            Content_Type="application/x-www-form-urlencoded",
        )  # fmt: skip
        assert (status, headers["location"]) == (303, f"/share?{shared.link.partition('?')[2]}")
        page = office.ask(shared.link, Accept="text/html")[2].decode()
        assert "manifest.csv" in page
        assert "<script" not in page
        assert (
            "default-src 'none'"
            in office.ask(shared.link, Accept="text/html")[1]["content-security-policy"]
        )

    def test_an_invitation_to_a_store_is_refused(self, office: Office) -> None:
        with pytest.raises(ConfigError, match=r"CONFIG-05.*before"):
            office.issue(invite=True, store="file:///tmp/none")


class TestChanges:
    """What happens to a registry of its own: its links end."""

    @pytest.fixture
    def own(self, scans: Path, run_ingest: Any, tmp_path: Path) -> Iterator[Office]:
        run_ingest(tmp_path / "reg", scans)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharing_module, "check_release", lambda *_: None)
            office = Office(tmp_path)
            yield office
            office.process.kill()
            office.process.wait()
            assert office.process.stdout is not None
            office.process.stdout.close()

    def test_agreements_end_and_patients_go(
        self, own: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        shared = own.issue()
        text = tmp_path / "dua.txt"
        text.write_text("<b>Do not</b> try to find out who they are.")
        set_agreement(own.registry, "phantoms", "1.0", text, days=30)
        assert own.code(shared.link, "manifest.csv") == (403, "DATA-25")
        page = own.ask(shared.link, Accept="text/html")[2].decode()
        assert "&lt;b&gt;Do not" in page  # a text is text
        with monkeypatch.context() as past:
            old = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 31 * 86400))
            past.setattr(share_ledger, "now", lambda: old)
            accept(own.registry, own.user, "phantoms", "1.0")
        assert own.code(shared.link, "manifest.csv") == (403, "DATA-46")
        with pytest.raises(DataError, match="DATA-46"):
            own.issue()
        offer = agreement_of(own.registry, "phantoms", read(own.path))
        body = json.dumps({"source": "phantoms", "sha256": offer.sha256}).encode()
        assert own.ask(shared.link, method="POST", body=body, place="/agreements",
                       Content_Type="application/json")[0] == 200  # fmt: skip
        assert own.ask(shared.link, "manifest.csv")[0] == 200
        deadline = time.monotonic() + 10
        while fetched(own.path)[shared.nonce].completed < 1:  # counted after the last byte went
            assert time.monotonic() < deadline
            time.sleep(0.05)
        text.write_text("The same under another term.")
        with pytest.raises(ConfigError, match=r"CONFIG-05.*another text or term"):
            set_agreement(own.registry, "phantoms", "1.0", text, days=31)

        assert main(["data", "share", "list", "--registry", str(own.path)]) == 0
        assert "1 of 1" in capsys.readouterr().out
        subject = own.registry.volumes("region = 'knee'")[0].subject_id
        withdraw(own.registry, WithdrawConfig(subject=subject))
        assert own.code(shared.link, "manifest.csv") == (410, "DATA-22")
        assert fetched(own.path)[shared.nonce].completed == 1  # counts outlive the patient,
        assert subject.encode() not in (own.path / "downloads.sqlite").read_bytes()  # unnamed

    def test_the_export_was_changed(self, own: Office) -> None:
        link = own.issue().link
        (own.out / "manifest.csv").write_text("other")
        assert own.code(link, "big.bin") == (403, "DATA-24")
