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
from data_registry.deidentify.cli import main
from data_registry.deidentify.ledger import LEDGER, Draw, Ledger, Line
from data_registry.deidentify.review_cli import main as review
from data_registry.deidentify.review_items import Item, items_of
from data_registry.deidentify.review_pictures import header, picture
from data_registry.deidentify.review_server import ReviewServer
from tests.data_registry.deid_corpus.generate import routine, write
from tests.data_registry.deid_corpus.score import found


def said(ledger: Ledger, item: Item) -> Line | None:
    return ledger.verdict_on(item.name, item.seen)


def say(ledger: Ledger, item: Item, verdict: str, initials: str = "ab") -> None:
    ledger.add(item.name, item.seen, verdict, initials, Draw(30, 0))


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
        items = items_of(folder, Draw(3, 1))
        assert len(items) == 3
        assert [len(item.files) for item in items] == [3, 3, 3]
        assert items == items_of(folder, Draw(3, 1))
        assert {i.name for i in items_of(folder, Draw(9, 0))} >= {i.name for i in items}
        names = [[i.name for i in items_of(folder, Draw(4, seed))] for seed in range(3)]
        assert names[0] != names[1]
        assert [i.name for i in items_of(folder, Draw(2, 1))] == names[1][:2]

    def test_flagged_volumes_come_first_and_always(self, folder: Path) -> None:
        audit = folder / "audit.jsonl"
        lines = audit.read_text().splitlines()
        record = json.loads(lines[-1])
        record["texts"] = ["PABCDEFGHIJKLMNOP"]
        audit.write_text("\n".join([*lines[:-1], json.dumps(record)]) + "\n")
        items = items_of(folder, Draw(0, 0))
        assert [item.why for item in items] == ["flagged"]
        assert record["output"].startswith(items[0].name)

    def test_pictures_and_headers_hold_no_name(self, folder: Path) -> None:
        tokens = {token for file in routine(5, (64, 64, 96, 96), 3) for token in file.tokens}
        for item in items_of(folder, Draw(4, 0)):
            assert picture(item).startswith("data:image/png;base64,iVBOR")
            rows = header(item)
            assert ("Patient Identity Removed", "YES") in rows
            assert found(tokens, json.dumps(rows).encode()) == []

    def test_no_output_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"audit\.jsonl"):
            items_of(tmp_path, Draw(1, 0))


class TestLedger:
    @pytest.fixture
    def item(self, folder: Path) -> Item:
        return items_of(folder, Draw(1, 0))[0]

    def test_ships_unfilled(self, folder: Path, item: Item) -> None:
        assert not (folder / LEDGER).exists()
        assert said(Ledger.open(folder), item) is None

    def test_later_verdicts_count_and_earlier_ones_stay(self, folder: Path, item: Item) -> None:
        ledger = Ledger.open(folder)
        say(ledger, item, "fail")
        first = (folder / LEDGER).read_text()
        say(ledger, item, "pass", "cd")
        assert (folder / LEDGER).read_text().startswith(first)
        again = Ledger.open(folder)
        line = said(again, item)
        assert line is not None
        assert (line.verdict, line.initials, len(again.lines)) == ("pass", "CD", 2)

    def test_a_verdict_is_on_what_was_seen(self, folder: Path, item: Item) -> None:
        say(Ledger.open(folder), item, "pass")
        changed = Item(item.name, item.files, "C" + "A" * 26, item.why)
        assert said(Ledger.open(folder), changed) is None

    @pytest.mark.parametrize(
        ("verdict", "initials"),
        [("maybe", "ab"), ("pass", ""), ("pass", "a"), ("pass", "a1"), ("pass", "abcde")],
    )
    def test_what_is_no_verdict(
        self, folder: Path, item: Item, verdict: str, initials: str
    ) -> None:
        with pytest.raises(ConfigError):
            say(Ledger.open(folder), item, verdict, initials)
        assert not (folder / LEDGER).exists()

    def test_damaged(self, folder: Path) -> None:
        (folder / LEDGER).write_text('{"verdict": "pass"}\n')
        with pytest.raises(DataError, match="no verdict"):
            Ledger.open(folder)


class TestStatus:
    def test_says_what_is_open(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = [str(folder), "--sample", "2", "--status", "--json"]
        capsys.readouterr()
        assert review(words) == 1
        assert json.loads(capsys.readouterr().out) == {
            "items": 2, "pass": 0, "fail": 0, "unsure": 0, "open": 2
        }  # fmt: skip
        ledger = Ledger.open(folder)
        for item in items_of(folder, Draw(2, 0)):
            say(ledger, item, "pass")
        assert review(words) == 0

    def test_the_verifier_takes_the_ledger_for_no_output(
        self, folder: Path, tmp_path: Path
    ) -> None:
        from data_registry.deidentify.verify_cli import main as verify_main

        say(Ledger.open(folder), items_of(folder, Draw(1, 0))[0], "pass")
        assert verify_main([str(tmp_path / "in"), str(folder), "--jobs", "1"]) == 0


@pytest.fixture
def server(folder: Path) -> Iterator[ReviewServer]:
    draw = Draw(4, 0)
    with ReviewServer(items_of(folder, draw), Ledger.open(folder), draw) as served:
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
