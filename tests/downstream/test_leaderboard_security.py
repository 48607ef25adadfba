"""Leaderboards: what strangers try, and what kills; references stay hidden."""

from __future__ import annotations

import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from core_mri.errors import LeaderboardError
from core_mri.volume import Volume
from downstream.leaderboard import submitting
from downstream.leaderboard.board import create
from downstream.leaderboard.fingerprints import are_copies, distance, judged, sketch
from downstream.leaderboard.showing import as_json, facts, page
from downstream.reconstruction.scores import volume_scores
from tests.downstream.leaderboard_files import (
    CARD,
    Hall,
    degraded,
    flipped,
    images,
    knee_board,
    masks,
    tissue_task,
    write_images,
    write_masks,
    zipped,
)

ROOT = Path(__file__).resolve().parents[2]


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
