"""Leaderboards: honest submissions are ranked, others refused, references stay hidden."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from core_mri.__main__ import main
from core_mri.config import load_config
from core_mri.errors import ConfigError, LeaderboardError
from core_mri.metrics import bootstrap_interval
from downstream.leaderboard.board import Board, create
from downstream.leaderboard.ranking import ranked
from downstream.leaderboard.showing import facts, page
from downstream.leaderboard.store import Entry, Store
from downstream.leaderboard.task import Card, TaskConfig, load_card
from downstream.reconstruction.scores import volume_scores
from tests.downstream.leaderboard_files import (
    CARD,
    Hall,
    degraded,
    flipped,
    images,
    knee_task,
    masks,
    tissue_board,
    tissue_task,
    write_images,
    write_masks,
    zipped,
)

ROOT = Path(__file__).resolve().parents[2]


class TestScores:
    def test_are_those_of_the_project(self, knees: Hall) -> None:
        sent = degraded(knees.references, 0.1, 1)
        knees.images(sent)
        (row,) = facts(knees.board)["submissions"]
        every = [volume_scores(knees.references[name], sent[name]) for name in sorted(sent)]
        for metric in ("SSIM", "PSNR", "NMSE"):
            wanted = bootstrap_interval([scores[metric] for scores in every])
            found = row["scores"][metric]
            assert found["mean"] == pytest.approx(wanted.mean, rel=1e-4)
            assert found["ci_low"] == pytest.approx(wanted.low, rel=1e-4)
            assert found["ci_high"] == pytest.approx(wanted.high, rel=1e-4)

    def test_a_folder_a_zip_and_the_middle_score_alike(self, knees: Hall, tmp_path: Path) -> None:
        sent = degraded(knees.references, 0.1, 1)
        middle = {name: array[:, 4:36] for name, array in sent.items()}
        scores = []
        for number, (arrays, pack) in enumerate(((sent, zipped), (sent, Path), (middle, zipped))):
            board = create(knees.board.task, knees.folder / "references", tmp_path / f"b{number}")
            hall = Hall(tmp_path / f"h{number}", board, knees.references)
            hall.folder.mkdir()
            hall.submit(pack(write_images(hall.place(), arrays)))
            scores.append(facts(board)["submissions"][0]["scores"])
        assert scores[0] == scores[1] == scores[2]

    def test_of_masks_by_patient(self, tmp_path: Path) -> None:
        patients = {name: f"p{number // 2}" for number, name in enumerate(masks())}
        board, references = tissue_board(tmp_path, patients=patients)
        hall = Hall(tmp_path, board, references)
        hall.masks(flipped(references, 0.1, 1))
        (row,) = facts(board)["submissions"]
        assert facts(board)["patients"] == 4
        assert set(row["scores"]) == {"dice", "nsd", "hd95"}
        assert 0.5 < row["scores"]["dice"]["mean"] < 0.99
        assert 0 < row["scores"]["hd95"]["mean"] < 60

    def test_nothing_found_is_scored_too(self, tissue: Hall) -> None:
        empty = {n: v.with_array(np.zeros_like(v.array)) for n, v in tissue.references.items()}
        tissue.masks(empty)
        (row,) = facts(tissue.board)["submissions"]
        assert row["scores"]["dice"]["mean"] == 0
        diagonal = np.linalg.norm([20, 30, 24])
        assert row["scores"]["hd95"]["mean"] == pytest.approx(diagonal, rel=1e-4)


class TestRanks:
    TASK = knee_task()

    def entry(self, name: str, values: list[float], created: float = 0.0) -> Entry:
        scores = {f"p{i}": value for i, value in enumerate(values)}
        return Entry(name=name, owner="o", card=load_card(CARD), created=created,
                     scores=dict.fromkeys(("SSIM", "PSNR", "NMSE"), scores))  # fmt: skip

    def ranks(self, *entries: Entry, task: TaskConfig = TASK) -> dict[str, int]:
        return {row.entry.name: row.rank for row in ranked(entries, task)}

    def test_pairs_that_may_be_equal_share_a_rank_and_other_ranks_are_sure(self) -> None:
        rng = np.random.default_rng(0)
        patients = rng.normal(0.7, 0.1, 12)
        for draw in range(10):
            shifts = rng.normal(0, 0.03, 7)
            entries = [
                self.entry(f"m{i}", list(patients + shift + rng.normal(0, 0.02, 12)))
                for i, shift in enumerate(shifts)
            ]
            rows = ranked(entries, self.TASK)
            values = {
                r.entry.name: np.array([v for _, v in sorted(r.entry.scores["SSIM"].items())])
                for r in rows
            }
            for place, above in enumerate(rows):
                for below in rows[place + 1 :]:
                    interval = bootstrap_interval(
                        values[above.entry.name] - values[below.entry.name]
                    )
                    holds_zero = interval.low <= 0 <= interval.high
                    assert above.rank == below.rank or not holds_zero, draw
                    assert (above.entry.name in below.behind) == (interval.low > 0)
            assert [row.rank for row in rows] == sorted(row.rank for row in rows)
            again = ranked(entries[::-1], self.TASK)
            assert [(r.rank, r.entry.name) for r in again] == [(r.rank, r.entry.name) for r in rows]

    def test_the_pairing_counts(self) -> None:
        """A small difference in every patient is sure, however much patients differ."""
        patients = np.linspace(0.2, 0.9, 10)
        better = self.entry("better", list(patients + 0.01))
        assert self.ranks(self.entry("worse", list(patients)), better) == {"better": 1, "worse": 2}

    def test_less_is_better_for_errors(self) -> None:
        low, high = self.entry("low", [0.1] * 8), self.entry("high", [0.2] * 8)
        assert self.ranks(low, high, task=knee_task(metric="NMSE")) == {"low": 1, "high": 2}
        assert self.ranks(low, high) == {"high": 1, "low": 2}

    def test_few_patients_claim_nothing(self) -> None:
        one, other = self.entry("one", [0.9] * 7), self.entry("other", [0.1] * 7)
        assert self.ranks(one, other) == {"one": 1, "other": 1}
        assert ranked([one, other], self.TASK)[1].behind == ()

    def test_a_chain_of_ties_is_one_rank_and_says_what_differs(self) -> None:
        base = np.linspace(0.4, 0.8, 10)
        wave = np.array([1, -1] * 5)
        chain = [self.entry(name, list(base - step + wave * size)) for name, step, size in
                 (("a", 0, 0), ("b", 0.02, 0.04), ("c", 0.04, 0))]  # fmt: skip
        rows = ranked(chain, self.TASK)
        assert [(r.entry.name, r.rank, r.behind) for r in rows] == [
            ("a", 1, ()), ("b", 1, ()), ("c", 1, ("a",)),
        ]  # fmt: skip

    def test_empty(self) -> None:
        assert ranked([], self.TASK) == []


class TestCard:
    def test_good(self) -> None:
        assert load_card(CARD) == Card(**CARD)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "change",
        [
            {"method": ""}, {"limits": "  "}, {"method": "x" * 5000}, {"saw_test_patients": True},
            {"saw_test_patients": "maybe"}, {"parameters": -1}, {"parameters": "many"},
            {"licence": "unknown"}, {"licence": "My-Own"}, {"licence": "(("}, {"more": 1},
            *({key: None} for key in CARD),
        ],
    )  # fmt: skip
    def test_incomplete(self, change: dict[str, Any]) -> None:
        with pytest.raises(LeaderboardError, match="BOARD-04"):
            load_card({**CARD, **change})

    @pytest.mark.parametrize("key", list(CARD))
    def test_every_key_is_demanded(self, key: str) -> None:
        with pytest.raises(LeaderboardError, match=f"BOARD-04.*{key}"):
            load_card({name: value for name, value in CARD.items() if name != key})

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(LeaderboardError, match="BOARD-04"):
            load_card(tmp_path / "none.yaml")


class TestCreate:
    def test_of_packaged_examples(self) -> None:
        examples = sorted((ROOT / "downstream/configs/leaderboards").glob("*.yaml"))
        assert {load_config(TaskConfig, path).kind for path in examples} == {
            "reconstruction", "segmentation",
        }  # fmt: skip

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "A b"}, {"name": "../x"}, {"metric": "dice"}, {"target": ""}, {"near": 0.0},
            {"structures": ("a",)}, {"per_day": 0}, {"per_day": 500}, {"near": 1.0},
        ],
    )  # fmt: skip
    def test_wrong_tasks(self, change: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="CONFIG-01"):
            knee_task(**change)

    def test_references_that_make_no_task(self, tmp_path: Path) -> None:
        good = images(2)
        zero, nan = np.zeros((2, 40, 32), np.float32), np.full((2, 40, 32), np.nan, np.float32)
        small = np.ones((2, 6, 32), np.float32)
        for number, arrays in enumerate(({}, {"a.h5": zero}, {"a.h5": nan}, {"a.h5": small})):
            source = write_images(tmp_path / f"r{number}", good | arrays if arrays else {},
                                  "reconstruction_esc")  # fmt: skip
            with pytest.raises(LeaderboardError, match="BOARD-09"):
                create(knee_task(), source, tmp_path / "b")
        source = write_images(tmp_path / "good", good, "reconstruction_esc")
        with pytest.raises(LeaderboardError, match=r"BOARD-09.*one patient"):
            create(knee_task(patients=dict.fromkeys(good, "p")), source, tmp_path / "b")
        for patients in ({"file0.h5": "p"}, {"file0.h5": "p", "file1.h5": "q", "x.h5": "r"}):
            with pytest.raises(LeaderboardError, match=r"BOARD-09.*patient"):
                create(knee_task(patients=patients), source, tmp_path / "b")
        with pytest.raises(LeaderboardError, match="BOARD-09"):
            create(knee_task(target="other"), source, tmp_path / "b")
        empty = {n: v.with_array(np.zeros_like(v.array)) for n, v in masks(2).items()}
        with pytest.raises(LeaderboardError, match=r"BOARD-09.*structure"):
            create(tissue_task(), write_masks(tmp_path / "m", empty), tmp_path / "b")
        assert not (tmp_path / "b").exists()
        create(knee_task(), source, tmp_path / "b")
        with pytest.raises(ConfigError, match="CONFIG-03"):
            create(knee_task(), source, tmp_path / "b")

    def test_references_are_not_modified(self, tmp_path: Path) -> None:
        source = write_images(tmp_path / "r", images(2), "reconstruction_esc")
        before = {p.name: hashlib.sha256(p.read_bytes()).digest() for p in source.iterdir()}
        create(knee_task(), source, tmp_path / "b")
        assert {p.name: hashlib.sha256(p.read_bytes()).digest() for p in source.iterdir()} == before

    def test_damaged_boards(self, knees: Hall, tmp_path: Path) -> None:
        with pytest.raises(LeaderboardError, match="BOARD-01"):
            Board.open(tmp_path / "none")
        path = knees.board.folder / "board.json"
        for content in (b"", b"[]", b'{"format": 9}', b"{", path.read_bytes()[:-50]):
            path.write_bytes(content)
            with pytest.raises(LeaderboardError, match="BOARD-01"):
                Board.open(knees.board.folder)
        knees.board.database.write_bytes(b"no database" * 100)
        with pytest.raises(LeaderboardError, match="BOARD-01"):
            Store(knees.board).entries()


class _Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


class TestShown:
    def test_the_page_needs_nothing_and_believes_nobody(self, knees: Hall) -> None:
        card = replace(load_card(CARD), method="<script>alert(1)</script>", limits="=cmd|'x'!A1")
        knees.images(degraded(knees.references, 0.1, 1), card=card, owner="<img src=x>")
        html = page(knees.board)
        assert html == page(knees.board)
        tags = _Page(html).tags
        assert not {tag for tag, _ in tags} & {"script", "iframe", "link", "object"}
        links = [v for _, a in tags for k, v in a.items() if k in ("src", "href") and v]
        assert all(link.startswith(("data:", "#")) for link in links)
        assert "&lt;script&gt;" in html
        assert "Model cards" in html

    def test_an_empty_board(self, knees: Hall) -> None:
        assert "No submission yet" in page(knees.board)

    def test_few_patients_are_said(self, tmp_path: Path) -> None:
        source = write_images(tmp_path / "r", images(3), "reconstruction_esc")
        hall = Hall(tmp_path, create(knee_task(), source, tmp_path / "b"), images(3))
        hall.images(degraded(images(3), 0.1, 1))
        assert "Fewer than 8 patients" in page(hall.board)


class TestVerb:
    def test_from_task_to_page(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        references = images()
        source = write_images(tmp_path / "references", references, "reconstruction_esc")
        board, card = tmp_path / "board", tmp_path / "card.yaml"
        card.write_text(yaml.safe_dump(CARD))
        task = ROOT / "downstream/configs/leaderboards/knee_reconstruction.yaml"
        words = ["leaderboard", "create", str(task), "--references", str(source)]
        assert main([*words, "--board", str(board)]) == 0
        for number, noise in enumerate((0.02, 0.3)):
            sent = zipped(
                write_images(tmp_path / f"s{number}", degraded(references, noise, number))
            )
            words = ["leaderboard", "submit", str(board), str(sent), "--owner", "ada"]
            assert main([*words, "--name", f"net {number}", "--card", str(card)]) == 0
        out = capsys.readouterr().out
        assert "rank 1 of 1" in out
        assert "rank 2 of 2" in out
        assert main([*words, "--name", "third", "--card", str(card)]) == 1
        assert "BOARD-05" in capsys.readouterr().err
        assert main(["leaderboard", "show", str(board)]) == 0
        assert "net 0 (ada)" in capsys.readouterr().out
        assert main(["leaderboard", "show", str(board), "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["submissions"]
        assert [(row["rank"], row["name"], row["behind"]) for row in rows] == [
            (1, "net 0", []), (2, "net 1", ["net 0"]),
        ]  # fmt: skip
        assert main(["leaderboard", "export", str(board), "--out", str(tmp_path / "p.html")]) == 0
        assert (tmp_path / "p.html").read_text() == page(Board.open(board))
        assert main(["leaderboard", "none"]) == 2
        assert main(["leaderboard"]) == 2
        assert main(["leaderboard", "--help"]) == 0
