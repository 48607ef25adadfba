"""Leaderboards: honest submissions are ranked, others refused, references stay hidden."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from core_mri.__main__ import main
from core_mri.config import load_config
from core_mri.errors import ConfigError, CoreMRIError, LeaderboardError
from core_mri.metrics import bootstrap_interval
from core_mri.volume import Volume
from downstream.leaderboard import submitting
from downstream.leaderboard.board import Board, create
from downstream.leaderboard.fingerprints import are_copies, distance, judged, sketch
from downstream.leaderboard.ranking import ranked
from downstream.leaderboard.showing import as_json, facts, page
from downstream.leaderboard.store import Entry, Store
from downstream.leaderboard.submitting import submit
from downstream.leaderboard.task import Card, TaskConfig, load_card
from downstream.reconstruction.scores import volume_scores
from tests.downstream.leaderboard_files import (
    CARD,
    Arrays,
    degraded,
    flipped,
    images,
    knee_board,
    knee_task,
    masks,
    tissue_board,
    tissue_task,
    write_images,
    write_masks,
    zipped,
)

ROOT = Path(__file__).resolve().parents[2]


class Hall:
    """A board, its references as the test knows them, and a place for submissions."""

    def __init__(self, folder: Path, board: Board, references: Any) -> None:
        self.folder, self.board, self.references = folder, board, references
        self.number = 0

    def place(self) -> Path:
        self.number += 1
        return self.folder / f"s{self.number}"

    def submit(self, source: Path, **changes: Any) -> str:
        options: dict[str, Any] = {
            "owner": "ada", "name": f"method {self.number}", "card": load_card(CARD),
            "ticket": uuid.uuid4().hex, "scratch": self.folder,
        }  # fmt: skip
        return submit(self.board, source, **{**options, **changes})

    def images(self, arrays: Arrays, **changes: Any) -> str:
        return self.submit(zipped(write_images(self.place(), arrays)), **changes)

    def masks(self, volumes: dict[str, Volume], **changes: Any) -> str:
        return self.submit(zipped(write_masks(self.place(), volumes)), **changes)

    def refused(self, source: Path, **changes: Any) -> CoreMRIError:
        with pytest.raises(CoreMRIError) as caught:
            self.submit(source, **changes)
        return caught.value


@pytest.fixture
def knees(tmp_path: Path) -> Hall:
    (tmp_path / "knees").mkdir()
    return Hall(tmp_path / "knees", *knee_board(tmp_path / "knees"))


@pytest.fixture
def tissue(tmp_path: Path) -> Hall:
    (tmp_path / "tissue").mkdir()
    return Hall(tmp_path / "tissue", *tissue_board(tmp_path / "tissue"))


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


class TestFiles:
    """What is no submission of the task, by how it is wrong."""

    def test_missing_further_and_renamed(self, knees: Hall) -> None:
        sent = degraded(knees.references, 0.1, 1)
        missing = {name: array for name, array in sent.items() if name != "file3.h5"}
        further = {**sent, "file99.h5": sent["file0.h5"]}
        renamed = {**missing, "FILE3.h5": sent["file3.h5"]}
        for arrays in (missing, further, renamed, {}):
            error = knees.refused(zipped(write_images(knees.place(), arrays)))
            assert error.code == "BOARD-02"
        assert "file3.h5" in str(knees.refused(zipped(write_images(knees.place(), missing))))

    @pytest.mark.parametrize(
        "change",
        [
            lambda a: a[:1],
            lambda a: a[:, :, :30],
            lambda a: a[0],
            lambda a: a[None],
            lambda a: np.where(a == a.max(), np.nan, a),
            lambda a: np.where(a == a.max(), np.inf, a),
            lambda a: a.astype(np.complex64),
            lambda a: (a * 100).astype(np.int32),
            lambda a: a.astype("S5"),
            lambda _: np.array(1.0),
        ],
    )
    def test_shapes_types_and_values(self, knees: Hall, change: Callable[..., Any]) -> None:
        sent = degraded(knees.references, 0.1, 1)
        sent["file2.h5"] = change(sent["file2.h5"])
        error = knees.refused(zipped(write_images(knees.place(), sent)))
        assert error.code == "BOARD-03"
        assert "file2.h5" in str(error)
        assert str(knees.folder) not in str(error)

    def test_another_dataset(self, knees: Hall) -> None:
        sent = degraded(knees.references, 0.1, 1)
        folder = write_images(knees.place(), sent, "reconstruction_esc")
        assert "no dataset `reconstruction`" in str(knees.refused(zipped(folder)))

    @pytest.mark.parametrize(
        "change",
        [
            lambda v: Volume(v.array[:-1], v.affine, "label"),
            lambda v: Volume(v.array + np.uint8(2), v.affine, "label"),
            lambda v: Volume(v.array.astype(np.int16) - 1, v.affine, "label"),
            lambda v: Volume(v.array.astype(np.float32) + 0.5, v.affine, "image"),
            lambda v: Volume(v.array.astype(np.float32) + np.nan, v.affine, "image"),
            lambda v: Volume(v.array, v.affine @ np.diag([-1.0, 1, 1, 1]), "label"),
            lambda v: Volume(v.array, v.affine @ np.diag([1.0, 1, 1.1, 1]), "label"),
        ],
    )
    def test_masks_of_other_grids_and_values(
        self, tissue: Hall, change: Callable[[Volume], Volume]
    ) -> None:
        sent = flipped(tissue.references, 0.1, 1)
        sent["case2.nii.gz"] = change(sent["case2.nii.gz"])
        error = tissue.refused(zipped(write_masks(tissue.place(), sent)))
        assert error.code == "BOARD-03"

    def test_no_zip(self, knees: Hall, tmp_path: Path) -> None:
        good = zipped(write_images(knees.place(), degraded(knees.references, 0.1, 1)))
        for number, content in enumerate((b"", b"PK\x03\x04", good.read_bytes()[:-200],
                                          pickle.dumps({"a": 1}))):  # fmt: skip
            path = tmp_path / f"bad{number}.zip"
            path.write_bytes(content)
            assert knees.refused(path).code == "BOARD-02"
        assert knees.refused(tmp_path / "none.zip").code == "BOARD-02"

    @pytest.mark.parametrize(
        "name",
        ["../file2.h5", "/file2.h5", "sub/file2.h5", "file2.h5/", "..\\file2.h5", "file2.h5 "],
    )
    def test_ways_out_of_a_zip(self, knees: Hall, tmp_path: Path, name: str) -> None:
        folder = write_images(knees.place(), degraded(knees.references, 0.1, 1))
        path = tmp_path / "bad.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.iterdir():
                member = zipfile.ZipInfo(file.name)
                if file.name == "file2.h5":
                    member.filename = name
                archive.writestr(member, file.read_bytes())
        before = set(tmp_path.rglob("*"))
        assert knees.refused(path).code == "BOARD-02"
        own = {knees.board.database, knees.board.folder / ".turn"}
        assert set(tmp_path.rglob("*")) - before <= own

    def test_twice_in_a_zip(self, knees: Hall) -> None:
        folder = write_images(knees.place(), degraded(knees.references, 0.1, 1))
        path = zipped(folder)
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.write(folder / "file1.h5", "file1.h5")
        assert "twice" in str(knees.refused(path))

    def test_a_bomb(self, knees: Hall, tmp_path: Path) -> None:
        path = tmp_path / "bomb.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in knees.references:
                archive.writestr(name, bytes(40_000_000))
        assert path.stat().st_size < 1_000_000
        assert "more than" in str(knees.refused(path))


class TestHiddenReferences:
    """Ways to let the scorer read what the submitter cannot."""

    def one_file(self, knees: Hall, write: Callable[[Path], None]) -> Path:
        folder = write_images(knees.place(), degraded(knees.references, 0.1, 1))
        (folder / "file0.h5").unlink()
        write(folder / "file0.h5")
        return folder

    @pytest.mark.parametrize("kind", ["external link", "soft link", "virtual", "external storage"])
    def test_hdf5_that_points_elsewhere(self, knees: Hall, tmp_path: Path, kind: str) -> None:
        hidden = knees.folder / "references" / "file0.h5"
        stored = knees.board.folder / "references" / "0000.npy"

        def write(path: Path) -> None:
            with h5py.File(path, "w") as file:
                if kind == "external link":
                    file["reconstruction"] = h5py.ExternalLink(str(hidden), "reconstruction_esc")
                elif kind == "soft link":
                    file["other"] = np.ones((2, 40, 32), np.float32)
                    file["reconstruction"] = h5py.SoftLink("/other")
                elif kind == "virtual":
                    layout = h5py.VirtualLayout((2, 40, 32), np.float32)
                    layout[:] = h5py.VirtualSource(str(hidden), "reconstruction_esc", (2, 40, 32))
                    file.create_virtual_dataset("reconstruction", layout)
                else:
                    file.create_dataset("reconstruction", (2, 40, 32), np.float32,
                                        external=[(str(stored), 128, 2 * 40 * 32 * 4)])  # fmt: skip

        folder = self.one_file(knees, write)
        for source in (folder, zipped(folder)):
            error = knees.refused(source)
            assert error.code == "DATA-13"
            assert str(tmp_path) not in str(error)
        assert facts(knees.board)["submissions"] == []

    def test_a_link_in_a_folder(self, knees: Hall) -> None:
        hidden = knees.folder / "references" / "file0.h5"
        folder = self.one_file(knees, lambda path: path.symlink_to(hidden))
        assert knees.refused(folder).code == "BOARD-02"
        whole = knees.place()
        whole.symlink_to(knees.folder / "references", target_is_directory=True)
        assert knees.refused(whole).code == "BOARD-02"

    def test_a_link_in_a_zip(self, knees: Hall) -> None:
        folder = self.one_file(knees, lambda _: None)
        path = zipped(folder)
        link = zipfile.ZipInfo("file0.h5")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(link, str(knees.folder / "references" / "file0.h5"))
        assert "link" in str(knees.refused(path))

    @pytest.mark.parametrize("protocol", [0, 2, 5])
    def test_a_pickle_is_not_run(self, knees: Hall, tmp_path: Path, protocol: int) -> None:
        trace = tmp_path / "ran"

        class Bad:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.system, (f"touch {trace}",)

        content = pickle.dumps(Bad(), protocol=protocol)
        folder = self.one_file(knees, lambda path: path.write_bytes(content) and None)
        assert knees.refused(zipped(folder)).code == "BOARD-03"
        with (self.place_of_npy(tmp_path)).open("wb") as file:
            np.save(file, np.array([Bad()], object), allow_pickle=True)
        npy = self.place_of_npy(tmp_path).read_bytes()
        folder = self.one_file(knees, lambda path: path.write_bytes(npy) and None)
        assert knees.refused(zipped(folder)).code == "BOARD-03"
        assert not trace.exists()

    def place_of_npy(self, folder: Path) -> Path:
        return folder / "bad.npy"

    def test_nothing_that_is_shown_tells_of_patients(self, knees: Hall) -> None:
        sent = degraded(knees.references, 0.1, 1)
        knees.images(sent)
        shown = as_json(knees.board) + page(knees.board)
        for name in sent:
            value = volume_scores(knees.references[name], sent[name])["SSIM"]
            assert f"{value:.5g}" not in shown
        assert knees.board.key.hex() not in shown

    def test_nobody_else_can_read_the_folder(self, knees: Hall) -> None:
        knees.images(degraded(knees.references, 0.1, 1))
        assert stat.S_IMODE(knees.board.folder.stat().st_mode) == 0o700
        assert {p.suffix for p in (knees.board.folder / "references").iterdir()} == {".npy"}

    def test_a_reference_that_was_altered(self, knees: Hall) -> None:
        path = knees.board.folder / "references" / "0003.npy"
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
        sent = zipped(write_images(knees.place(), degraded(knees.references, 0.1, 1)))
        assert knees.refused(sent).code == "BOARD-01"


class TestCopies:
    def test_the_reference_itself(self, knees: Hall, tissue: Hall) -> None:
        for change in (
            lambda a: a,
            lambda a: a[:, 4:36],
            lambda a: a * 3,
            lambda a: a + 0.1,
            lambda a: a + np.random.default_rng(0).normal(0, 0.0005, a.shape),
        ):
            sent = {name: change(array) for name, array in knees.references.items()}
            error = knees.refused(zipped(write_images(knees.place(), sent)))
            assert error.code == "BOARD-07"
        assert tissue.refused(zipped(write_masks(tissue.place(), tissue.references))).code == (
            "BOARD-07"
        )

    def test_one_reference_among_honest_files(self, knees: Hall, tissue: Hall) -> None:
        sent = {**degraded(knees.references, 0.1, 1), "file5.h5": knees.references["file5.h5"]}
        assert knees.refused(zipped(write_images(knees.place(), sent))).code == "BOARD-07"
        some = flipped(tissue.references, 0.1, 1) | {
            "case5.nii.gz": tissue.references["case5.nii.gz"]
        }
        assert tissue.refused(zipped(write_masks(tissue.place(), some))).code == "BOARD-07"

    def test_small_structures_may_be_met(self, tmp_path: Path) -> None:
        references = masks()
        for name, volume in references.items():
            small = np.zeros_like(volume.array)
            small[3:6, 3:6, 3:6] = 1
            references[name] = volume.with_array(small)
        board = create(tissue_task(), write_masks(tmp_path / "r", references), tmp_path / "b")
        hall = Hall(tmp_path, board, references)
        honest = flipped(references, 0.05, 1) | {"case0.nii.gz": references["case0.nii.gz"]}
        hall.masks(honest)
        assert hall.refused(zipped(write_masks(hall.place(), references))).code == "BOARD-07"

    def test_an_earlier_submission_under_another_name(self, knees: Hall) -> None:
        first = degraded(knees.references, 0.1, 1)
        knees.images(first, name="first", owner="ada")
        rng = np.random.default_rng(5)
        border = {name: array.copy() for name, array in first.items()}
        for array in border.values():
            array[:, :4] += 9  # outside of what is scored
        for owner in ("ada", "bob"):
            for change, word in (
                (first, "equal"),
                (border, "equal"),
                ({n: a.astype(np.float64) for n, a in first.items()}, "equal"),
                ({n: a + rng.normal(0, 1e-4, a.shape) for n, a in first.items()}, "nearly"),
                ({n: a * 1.5 - 0.2 for n, a in first.items()}, "nearly"),
                ({n: np.round(a, 3) for n, a in first.items()}, "nearly"),
                (degraded(knees.references, 0.1, 7) | dict(list(first.items())[:5]), "nearly"),
            ):
                error = knees.refused(zipped(write_images(knees.place(), change)), owner=owner,
                                      name="mine")  # fmt: skip
                assert error.code == "BOARD-06"
                assert word in str(error)
                assert "'first'" in str(error)
        assert len(facts(knees.board)["submissions"]) == 1

    def test_an_earlier_mask(self, tissue: Hall) -> None:
        first = flipped(tissue.references, 0.1, 1)
        tissue.masks(first, name="first")
        touched = {}
        for name, volume in first.items():
            array = volume.array.copy()
            array[0, :4, 0] = 1
            touched[name] = volume.with_array(array)
        for sent in (first, touched):
            error = tissue.refused(zipped(write_masks(tissue.place(), sent)), owner="bob")
            assert error.code == "BOARD-06"
        tissue.masks(flipped(tissue.references, 0.1, 2))  # as good, another one

    def test_honest_methods_are_no_copies(self, knees: Hall) -> None:
        for seed in range(4):
            knees.images(degraded(knees.references, 0.05, seed))
        assert len(facts(knees.board)["submissions"]) == 4

    def test_sketches_tell_the_distance(self) -> None:
        array = judged(images(1)["file0.h5"], "reconstruction")
        rng = np.random.default_rng(0)
        for noise in (1e-4, 1e-2, 0.3):
            other = (array + rng.normal(0, noise, array.shape)).astype(np.float32)
            true = distance(array, other, "reconstruction")[0]
            (a, _), (b, _) = (sketch(x, "reconstruction", b"k", 0) for x in (array, other))
            assert np.linalg.norm(a.astype(float) - b) == pytest.approx(true, rel=0.15)
        mask = masks(1)["case0.nii.gz"].array
        other_mask = np.where(np.arange(mask.size).reshape(mask.shape) % 50 == 0, 0, mask)
        a, b = (sketch(x.astype(np.uint8), "segmentation", b"k", 0) for x in (mask, other_mask))
        true = np.count_nonzero(mask != other_mask)
        assert ((a[0].astype(float) - b[0]) ** 2).sum() == pytest.approx(true, rel=0.2)
        assert a[1] == np.count_nonzero(mask)
        c = sketch(mask, "segmentation", b"other key", 0)
        assert not are_copies([a], [c], "segmentation", 0.5)


class TestLimits:
    def test_of_scored_ones_and_copies(self, tmp_path: Path) -> None:
        hall = Hall(tmp_path, *knee_board(tmp_path, per_day=2, attempts_per_day=5))
        hall.images(degraded(hall.references, 0.1, 1))
        assert hall.refused(zipped(write_images(hall.place(), hall.references))).code == "BOARD-07"
        sent = zipped(write_images(hall.place(), degraded(hall.references, 0.1, 2)))
        error = hall.refused(sent)
        assert error.code == "BOARD-05"
        assert "24 hours" in error.fix
        hall.submit(sent, owner="bob", name="of another owner")

    def test_of_attempts(self, tmp_path: Path) -> None:
        hall = Hall(tmp_path, *knee_board(tmp_path, per_day=2, attempts_per_day=3))
        bad = zipped(write_images(hall.place(), {}))
        assert [hall.refused(bad).code for _ in range(4)] == ["BOARD-02"] * 3 + ["BOARD-05"]

    def test_a_day_later(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hall = Hall(tmp_path, *knee_board(tmp_path, per_day=1))
        with monkeypatch.context() as past:
            yesterday = time.time() - 86_401
            past.setattr(time, "time", lambda: yesterday)
            hall.images(degraded(hall.references, 0.1, 1))
        hall.images(degraded(hall.references, 0.1, 2))
        sent = zipped(write_images(hall.place(), degraded(hall.references, 0.1, 3)))
        assert hall.refused(sent).code == "BOARD-05"

    def test_two_at_once_take_turns(self, tmp_path: Path) -> None:
        hall = Hall(tmp_path, *knee_board(tmp_path))
        sent = zipped(write_images(hall.place(), degraded(hall.references, 0.1, 1)))
        codes: list[str] = []

        def one(name: str) -> None:
            try:
                hall.submit(sent, name=name, owner=name)
                codes.append("scored")
            except LeaderboardError as error:
                codes.append(error.code)

        threads = [threading.Thread(target=one, args=(f"n{i}",)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(codes) == ["BOARD-06", "BOARD-06", "scored"]

    @pytest.mark.parametrize(
        "name", ["", " a", "a ", "a\n", "<b>", "a" * 65, "\u0430da", "a/b", "a\x00"]
    )
    def test_names(self, knees: Hall, name: str) -> None:
        sent = zipped(write_images(knees.place(), degraded(knees.references, 0.1, 1)))
        assert knees.refused(sent, name=name).code == "BOARD-08"

    def test_a_name_is_taken_once(self, knees: Hall) -> None:
        knees.images(degraded(knees.references, 0.1, 1), name="Best Net")
        sent = zipped(write_images(knees.place(), degraded(knees.references, 0.1, 2)))
        assert knees.refused(sent, name="best net", owner="bob").code == "BOARD-08"


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


class TestKill:
    def test_killed_while_scoring(self, knees: Hall, tmp_path: Path) -> None:
        """The process dies in the middle; the board goes on, the same ticket is scored once."""
        sent = zipped(write_images(knees.place(), degraded(knees.references, 0.1, 1)))
        code = (
            "import sys, time, pathlib\n"
            "from downstream.leaderboard import submitting\n"
            "from downstream.leaderboard.board import Board\n"
            "from downstream.leaderboard.task import load_card\n"
            "submitting.by_patient = lambda *_: (print('here', flush=True), time.sleep(60))\n"
            f"submitting.submit(Board.open(pathlib.Path({str(knees.board.folder)!r})), "
            f"pathlib.Path({str(sent)!r}), owner='ada', name='first', card=load_card({CARD!r}), "
            f"ticket='t', scratch=pathlib.Path({str(tmp_path)!r}))\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                                   env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert facts(knees.board)["submissions"] == []
        assert knees.submit(sent, name="first", ticket="t") == "first"
        before = as_json(knees.board)
        assert knees.submit(sent, name="first", ticket="t") == "first"  # nothing happens again
        assert as_json(knees.board) == before
        assert len(facts(knees.board)["submissions"]) == 1

    def test_killed_after_a_refusal(self, knees: Hall) -> None:
        bad = zipped(write_images(knees.place(), {}))
        assert [knees.refused(bad, ticket="t").code for _ in range(2)] == ["BOARD-02"] * 2

    def test_one_that_fails_lets_the_next_have_its_turn(
        self, knees: Hall, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent = zipped(write_images(knees.place(), degraded(knees.references, 0.1, 1)))
        with monkeypatch.context() as broken:
            broken.setattr(submitting, "by_patient", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                knees.submit(sent)
        assert knees.submit(sent) == f"method {knees.number}"


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
