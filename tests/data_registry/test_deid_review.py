"""The review: items, an append-only ledger that only people fill, and a page for this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core_mri.errors import ConfigError, DataError
from data_registry.deidentify.cli import main, review_main
from data_registry.deidentify.review import LEDGER, Item, Ledger, header, items_of, picture
from data_registry.deidentify.review_server import ReviewServer
from tests.data_registry.deid_corpus.generate import routine, write
from tests.data_registry.deid_corpus.score import found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four series of two patients and more, de-identified."""
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text("44" * 32)
    write(list(routine(5, (64, 64, 96, 96), 3)), tmp_path / "in")
    out = tmp_path / "out"
    words = [str(tmp_path / "in"), str(out), "--key-file", str(key), "--jobs", "1"]
    assert main(words) == 0
    return out


class TestItems:
    def test_a_sample_of_volumes(self, folder: Path) -> None:
        items = items_of(folder, sample=3, seed=1)
        assert len(items) == 3
        assert [len(item.files) for item in items] == [3, 3, 3]
        assert items == items_of(folder, sample=3, seed=1)
        assert {i.name for i in items_of(folder, sample=9, seed=0)} >= {i.name for i in items}
        assert items_of(folder, sample=2, seed=3) != items_of(folder, sample=2, seed=4)

    def test_flagged_volumes_come_first_and_always(self, folder: Path) -> None:
        audit = folder / "audit.jsonl"
        lines = audit.read_text().splitlines()
        record = json.loads(lines[-1])
        record["texts"] = ["PABCDEFGHIJKLMNOP"]
        audit.write_text("\n".join([*lines[:-1], json.dumps(record)]) + "\n")
        items = items_of(folder, sample=0, seed=0)
        assert [item.why for item in items] == ["flagged"]
        assert record["output"].startswith(items[0].name)

    def test_pictures_and_headers_hold_no_name(self, folder: Path) -> None:
        tokens = {token for file in routine(5, (64, 64, 96, 96), 3) for token in file.tokens}
        for item in items_of(folder, sample=4, seed=0):
            assert picture(item).startswith("data:image/png;base64,iVBOR")
            rows = header(item)
            assert ("Patient Identity Removed", "YES") in rows
            assert found(tokens, json.dumps(rows).encode()) == []

    def test_no_output_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"audit\.jsonl"):
            items_of(tmp_path, sample=1, seed=0)


class TestLedger:
    @pytest.fixture
    def item(self, folder: Path) -> Item:
        return items_of(folder, sample=1, seed=0)[0]

    def test_ships_unfilled(self, folder: Path, item: Item) -> None:
        assert not (folder / LEDGER).exists()
        assert Ledger.open(folder).verdict_on(item) is None

    def test_later_verdicts_count_and_earlier_ones_stay(self, folder: Path, item: Item) -> None:
        ledger = Ledger.open(folder)
        ledger.add(item, "fail", "ab")
        first = (folder / LEDGER).read_text()
        ledger.add(item, "pass", "cd")
        assert (folder / LEDGER).read_text().startswith(first)
        again = Ledger.open(folder)
        line = again.verdict_on(item)
        assert line is not None
        assert (line.verdict, line.initials, len(again.lines)) == ("pass", "CD", 2)

    def test_a_verdict_is_on_what_was_seen(self, folder: Path, item: Item) -> None:
        Ledger.open(folder).add(item, "pass", "ab")
        changed = Item(item.name, item.files, "C" + "A" * 26, item.why)
        assert Ledger.open(folder).verdict_on(changed) is None

    @pytest.mark.parametrize(
        ("verdict", "initials"),
        [("maybe", "ab"), ("pass", ""), ("pass", "a"), ("pass", "a1"), ("pass", "abcde")],
    )
    def test_what_is_no_verdict(
        self, folder: Path, item: Item, verdict: str, initials: str
    ) -> None:
        with pytest.raises(ConfigError):
            Ledger.open(folder).add(item, verdict, initials)
        assert not (folder / LEDGER).exists()

    def test_damaged(self, folder: Path) -> None:
        (folder / LEDGER).write_text('{"verdict": "pass"}\n')
        with pytest.raises(DataError, match="no verdict"):
            Ledger.open(folder)


class TestStatus:
    def test_says_what_is_open(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = [str(folder), "--sample", "2", "--status", "--json"]
        capsys.readouterr()
        assert review_main(words) == 1
        assert json.loads(capsys.readouterr().out) == {
            "items": 2, "pass": 0, "fail": 0, "unsure": 0, "open": 2
        }  # fmt: skip
        ledger = Ledger.open(folder)
        for item in items_of(folder, sample=2, seed=0):
            ledger.add(item, "pass", "ab")
        assert review_main(words) == 0

    def test_the_verifier_takes_the_ledger_for_no_output(
        self, folder: Path, tmp_path: Path
    ) -> None:
        from data_registry.deidentify.cli import verify_main

        Ledger.open(folder).add(items_of(folder, sample=1, seed=0)[0], "pass", "ab")
        assert verify_main([str(tmp_path / "in"), str(folder), "--jobs", "1"]) == 0


@pytest.fixture
def server(folder: Path) -> Iterator[ReviewServer]:
    with ReviewServer(items_of(folder, sample=4, seed=0), Ledger.open(folder)) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield served
        served.shutdown()


def get(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def post(url: str, body: object, kind: str = "application/json") -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text[:1] == b"{" else None


class TestServer:
    def test_verdicts_reach_the_ledger(self, server: ReviewServer, folder: Path) -> None:
        assert [item["why"] for item in get(server.url + "items")] == ["sample"] * 4
        status, told = post(
            server.url + "verdict", {"item": "2", "verdict": "fail", "initials": "xy"}
        )
        assert (status, told["verdict"], told["initials"]) == (200, "fail", "XY")
        (line,) = map(json.loads, (folder / LEDGER).read_text().splitlines())
        assert line["item"] == server.items[2].name
        assert get(server.url + "items")[2]["verdict"] == "fail"
        assert server.reviewed == 1

    @pytest.mark.parametrize(
        "body",
        [
            {"item": "9", "verdict": "pass", "initials": "ab"},
            {"item": "../x", "verdict": "pass", "initials": "ab"},
            {"item": "0", "verdict": "good", "initials": "ab"},
            {"item": "0", "verdict": "pass", "initials": ""},
            {"verdict": "pass"},
            [],
        ],
    )
    def test_what_is_no_verdict(self, server: ReviewServer, folder: Path, body: object) -> None:
        status, told = post(server.url + "verdict", body)
        assert status == 400
        assert told["error"]
        assert not (folder / LEDGER).exists()

    def test_without_the_token_there_is_nothing(self, server: ReviewServer, folder: Path) -> None:
        root = server.url.rsplit("/", 2)[0]
        for path in ("/", "/items", "/wrong/items", "/wrong/"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(root + path)
        said = {"item": "0", "verdict": "pass", "initials": "ab"}
        assert post(root + "/wrong/verdict", said)[0] == 404
        assert post(server.url + "verdict", said, "text/plain")[0] == 404  # a form of another page
        assert not (folder / LEDGER).exists()

    def test_is_for_this_machine(self, server: ReviewServer) -> None:
        assert server.server_address[0] == "127.0.0.1"

    @pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
    def test_in_a_browser(self, server: ReviewServer, tmp_path: Path) -> None:
        """The page shows the first item: name, header rows, picture."""
        done = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu",
             "--virtual-time-budget=8000", f"--user-data-dir={tmp_path / 'profile'}",
             "--dump-dom", server.url],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert f"1 of 4, sample: {server.items[0].name}" in done.stdout
        assert "Patient Identity Removed" in done.stdout
        assert 'src="data:image/png' in done.stdout
