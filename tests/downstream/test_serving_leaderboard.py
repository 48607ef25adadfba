"""Leaderboards over HTTP: a submission is a job; who may not, is told why."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core_mri.__main__ import main
from tests.downstream.conftest import ALICE, BOB
from tests.downstream.leaderboard_files import (
    CARD,
    Arrays,
    degraded,
    images,
    knee_board,
    write_images,
    zipped,
)
from tests.downstream.serving_client import ROOT, Client, Reply, ServerProcess

PLACE = "/v1/leaderboards/knees"


class Contest:
    """A service with one leaderboard, and what has been sent to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.board, self.references = knee_board(folder, per_day=3, attempts_per_day=7)
        self.tokens = folder / "tokens"
        self.tokens.write_text(f"alice:{ALICE}\nbob:{BOB}\ncarol:{'c' * 30}\n")
        self.tokens.chmod(0o600)
        self.number = 0
        self.start()

    def start(self) -> None:
        self.server = ServerProcess(
            self.folder, "--leaderboards", str(self.board.folder), "--token-file", str(self.tokens)
        )
        self.alice, self.bob = Client(self.server.url, ALICE), Client(self.server.url, BOB)
        self.carol = Client(self.server.url, "c" * 30)

    def zip_of(self, arrays: Arrays) -> bytes:
        self.number += 1
        return zipped(write_images(self.folder / f"s{self.number}", arrays)).read_bytes()

    def announce(self, client: Client, size: int, /, **changes: Any) -> Reply:
        body = {"size": size, "name": "net", "card": CARD, **changes}
        return client.ask("POST", f"{PLACE}/submissions", body)

    def send(self, client: Client, content: bytes, name: str) -> Any:
        answer = self.announce(client, len(content), name=name)
        assert answer.status == 201, answer.body
        job = str(answer.json()["id"])
        for offset in range(0, len(content), 20_000):
            assert client.patch(job, offset, content[offset : offset + 20_000]).status == 200
        return client.wait(job)

    def ranking(self) -> list[tuple[int, str, str]]:
        rows = self.alice.ask("GET", PLACE).json()["submissions"]
        return [(row["rank"], row["name"], row["owner"]) for row in rows]


@pytest.fixture(scope="module")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contest]:
    contest = Contest(tmp_path_factory.mktemp("contest"))
    yield contest
    assert contest.server.stop() == 0


def test_submissions_from_upload_to_page(contest: Contest) -> None:
    """In order: scored, ranked, refused as copies, refused as too many, shown."""
    good, bad = (degraded(contest.references, noise, 1) for noise in (0.02, 0.3))
    first = contest.send(contest.alice, contest.zip_of(good), "good")
    assert first["state"] == "done", first
    assert (first["report"]["kind"], first["report"]["rank"]) == ("submission", 1)
    assert [file["name"] for file in first["results"]] == ["report.json"]
    assert contest.send(contest.bob, contest.zip_of(bad), "bad")["state"] == "done"
    assert contest.ranking() == [(1, "good", "alice"), (2, "bad", "bob")]

    for arrays, code in ((good, "BOARD-06"), (contest.references, "BOARD-07")):
        failed = contest.send(contest.bob, contest.zip_of(arrays), "mine")
        assert (failed["state"], failed["error"]["code"]) == ("failed", code)
        assert failed["error"]["fix"]
        assert str(contest.folder) not in str(failed)
        assert "/dev/shm" not in str(failed)
    refused = contest.announce(contest.bob, 100, name="fourth")
    assert (refused.status, refused.code) == (429, "BOARD-05")
    assert 3600 <= int(refused.headers["retry-after"]) <= 24 * 3600
    taken = contest.announce(contest.alice, 100, name="GOOD")
    assert (taken.status, taken.code) == (409, "BOARD-08")

    answer = contest.alice.ask("GET", f"{PLACE}/page")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert b"Model cards" in answer.body
    assert contest.alice.ask("GET", f"{PLACE}/page").body == answer.body
    out = contest.folder / "page.html"
    assert main(["leaderboard", "export", str(contest.board.folder), "--out", str(out)]) == 0
    assert out.read_bytes() == answer.body


@pytest.mark.slow
def test_killed_between_upload_and_scores(tmp_path: Path) -> None:
    """The job runs again under the same ticket, and counts once."""
    contest = Contest(tmp_path)
    content = contest.zip_of(degraded(contest.references, 0.1, 1))
    job = str(contest.announce(contest.alice, len(content)).json()["id"])
    assert contest.alice.patch(job, 0, content).status == 200
    contest.server.stop(signal.SIGKILL)
    contest.start()
    try:
        assert contest.alice.wait(job)["state"] == "done"
        assert contest.ranking() == [(1, "net", "alice")]
    finally:
        contest.server.stop()


def test_hostile_zips_end_their_job_alone(contest: Contest) -> None:
    sent = degraded(contest.references, 0.1, 9)
    for content, code in (
        (b"no zip", "BOARD-02"),
        (contest.zip_of({}), "BOARD-02"),
        (contest.zip_of({**sent, "file0.h5": sent["file0.h5"][:1]}), "BOARD-03"),
    ):
        failed = contest.send(contest.carol, content, "hostile")
        assert (failed["state"], failed["error"]["code"]) == ("failed", code)
    assert contest.alice.ask("GET", "/ready").status == 200
    assert "hostile" not in str(contest.ranking())


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"card": {}}, 422, "SERVE-09"),
        ({"card": {**CARD, "method": " "}}, 422, "BOARD-04"),
        ({"card": {**CARD, "saw_test_patients": True}}, 422, "BOARD-04"),
        ({"card": {**CARD, "licence": "unknown"}}, 422, "BOARD-04"),
        ({"card": None}, 422, "SERVE-09"),
        ({"name": "<b>"}, 409, "BOARD-08"),
        ({"name": "x" * 65}, 422, "SERVE-09"),
        ({"size": 0}, 422, "SERVE-09"),
        ({"size": 10**13}, 422, "SERVE-04"),
        ({"owner": "bob"}, 422, "SERVE-09"),
        ({"leaderboard": "other"}, 422, "SERVE-09"),
    ],
)
def test_announcements_that_are_refused(
    contest: Contest, change: dict[str, Any], status: int, code: str
) -> None:
    answer = contest.announce(contest.alice, 100, **change)
    assert (answer.status, answer.code) == (status, code), answer.body


def test_who_is_nobody_and_what_is_not_there(contest: Contest) -> None:
    stranger = Client(contest.server.url, "x" * 30)
    for method, path in (("GET", "/v1/leaderboards"), ("GET", PLACE), ("GET", f"{PLACE}/page"),
                         ("POST", f"{PLACE}/submissions")):  # fmt: skip
        assert stranger.ask(method, path, {} if method == "POST" else None).status == 401
    for path in ("/v1/leaderboards/other", "/v1/leaderboards/other/page"):
        answer = contest.alice.ask("GET", path)
        assert (answer.status, answer.code) == (404, "SERVE-50")
    for path in ("references/0000.npy", "board.json", "key", "..%2Fboard.json", "%2e%2e"):
        answer = contest.alice.ask("GET", f"{PLACE}/{path}")
        assert answer.status in (404, 422)
        assert b"NUMPY" not in answer.body
    (board,) = contest.alice.ask("GET", "/v1/leaderboards").json()["leaderboards"]
    assert (board["name"], board["patients"]) == ("knees", 8)


def test_the_same_key_is_the_same_submission(contest: Contest) -> None:
    body = {"size": 100, "name": "keyed", "card": CARD}
    key = {"Idempotency-Key": "k1"}
    first = contest.carol.ask("POST", f"{PLACE}/submissions", body, key)
    again = contest.carol.ask("POST", f"{PLACE}/submissions", body, key)
    assert (first.status, again.status) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = contest.carol.ask("POST", f"{PLACE}/submissions", {**body, "name": "another"}, key)
    assert (other.status, other.code) == (409, "SERVE-09")


def test_a_plain_job_is_no_submission(contest: Contest) -> None:
    """Without a source the service takes nothing but submissions."""
    content = contest.zip_of(images(1))
    found = contest.alice.run(content)
    assert found["state"] == "failed"
    assert re.match(r"DATA|SERVE", found["error"]["code"])
    answer = contest.alice.ask("POST", "/v1/jobs", {"size": 10, "leaderboard": "knees"})
    assert answer.status == 422


@pytest.mark.parametrize("twice", [False, True])
def test_folders_that_cannot_be_served(contest: Contest, tmp_path: Path, twice: bool) -> None:
    folders = [str(contest.board.folder)] * 2 if twice else [str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "core_mri", "serve", "--leaderboards", *folders, "--port", "0",
         "--data-dir", str(tmp_path / "data")],
        capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == (2 if twice else 1)
    assert ("CONFIG-05" if twice else "BOARD-01") in done.stderr
