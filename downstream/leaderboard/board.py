"""A leaderboard on disk: the task, the hidden references, the submissions.

```
BOARD/board.json              task and facts of each case, readable by who runs it alone (all is)
BOARD/references/0000.npy     hidden references: arrays, whatever file they came from
BOARD/key                     of the fingerprints: without it nobody can make a copy that passes
BOARD/board.sqlite            submissions and their scores
```
It is made aside and renamed. Nothing of a submission is ever a path, a name of a file or a program
here: submissions are arrays of numbers that are compared with arrays of numbers.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core_mri.config import load_config, to_mapping
from core_mri.errors import ConfigError, CoreMRIError, DataError, LeaderboardError
from core_mri.runs import write_atomically, writing
from downstream.leaderboard.task import SUFFIXES, TaskConfig

Array = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file that a submission has to hold."""

    name: str
    """Of the file."""
    patient: str
    shape: tuple[int, ...]
    affine: tuple[float, ...]
    """16 numbers, voxel to RAS+ mm, of masks; empty for reconstructions."""
    sha256: str
    """Of the reference as it is stored."""


@dataclass(frozen=True)
class Board:
    """An open leaderboard.

    Args:
        folder: Where it lies.
        task: What it asks for.
        cases: In the order of their names.
    """

    folder: Path
    task: TaskConfig
    cases: tuple[Case, ...]

    @classmethod
    def open(cls, folder: Path) -> Board:
        """An existing leaderboard.

        Raises:
            LeaderboardError: BOARD-01 when it is none, or damaged.
        """
        try:
            content = json.loads((folder / "board.json").read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError
            task = dict(content["task"])
            task["structures"] = tuple(task["structures"])
            cases = tuple(
                Case(**{**c, "shape": tuple(c["shape"]), "affine": tuple(c["affine"])})
                for c in content["cases"]
            )
            return cls(folder, load_config(TaskConfig, task), cases)
        except (OSError, ValueError, KeyError, TypeError, CoreMRIError):
            raise LeaderboardError(
                "BOARD-01",
                f"{folder} is no leaderboard, or a damaged one.",
                fix="Make one with `core-mri leaderboard create`.",
            ) from None

    @property
    def patients(self) -> list[str]:
        """All patients, sorted."""
        return sorted({case.patient for case in self.cases})

    @property
    def database(self) -> Path:
        """The submissions."""
        return self.folder / "board.sqlite"

    @property
    def key(self) -> bytes:
        """Of the fingerprints."""
        return (self.folder / "key").read_bytes()

    def reference(self, index: int) -> Array:
        """The hidden reference of a case.

        Raises:
            LeaderboardError: BOARD-01 when it is not what was stored.
        """
        path = _place(self.folder, index)
        if not path.is_file() or _sha256(path) != self.cases[index].sha256:
            raise LeaderboardError("BOARD-01", "a reference of the leaderboard is damaged.")
        array: Array = np.load(path, allow_pickle=False)
        return array

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One submission at a time, in all processes: two equal ones cannot pass each other."""
        import fcntl

        with writing(self.folder):
            file = (self.folder / ".turn").open("w")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def create(task: TaskConfig, references: Path, folder: Path) -> Board:
    """Make a leaderboard.

    Args:
        task: What it asks for.
        references: Folder of the reference files; they are copied as arrays.
        folder: Where it shall lie; must not exist.

    Raises:
        ConfigError: CONFIG-03 when the folder exists.
        LeaderboardError: BOARD-09 when the references cannot make a task.
        DataError: DATA-07 when it cannot be written, and what readers raise.
    """
    if folder.exists():
        raise ConfigError("CONFIG-03", f"{folder}: exists.", fix="Choose a new folder.")
    suffixes = SUFFIXES[task.kind]
    files = sorted(p for p in references.glob("*") if p.name.lower().endswith(suffixes))
    if not files:
        raise LeaderboardError("BOARD-09", f"{references}: no files {' or '.join(suffixes)}.")
    strangers = sorted(set(task.patients) - {file.name for file in files})
    if strangers or (task.patients and len(task.patients) < len(files)):
        missing = sorted({file.name for file in files} - set(task.patients))
        raise LeaderboardError(
            "BOARD-09",
            f"patients: has no reference file {strangers[:3]}, lacks {missing[:3]}.",
            fix="Name the patient of every file, or of none.",
        )
    if len({task.patients.get(file.name, file.name) for file in files}) < 2:
        raise LeaderboardError("BOARD-09", f"{references}: one patient alone has no interval.")
    aside = folder.with_name(f".{folder.name}.partial")
    with writing(folder):
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "references").mkdir(parents=True)
        for place in (aside, aside / "references"):
            place.chmod(0o700)
        cases = [_keep(task, file, aside, index) for index, file in enumerate(files)]
        if not any(np.load(_place(aside, index)).any() for index in range(len(cases))):
            raise LeaderboardError("BOARD-09", f"{references}: no file shows a structure.")
        write_atomically(aside / "key", secrets.token_bytes(32))
        content = {"format": _FORMAT, "task": to_mapping(task), "cases": [vars(c) for c in cases]}
        write_atomically(aside / "board.json", json.dumps(content, indent=1).encode())
        for file in aside.rglob("*"):
            if file.is_file():
                file.chmod(0o600)
        aside.replace(folder)
    return Board.open(folder)


def _keep(task: TaskConfig, file: Path, folder: Path, index: int) -> Case:
    """Read a reference and store it."""
    from downstream.leaderboard.reading import read_case

    try:
        array, affine = read_case(task, file, dataset=task.target)
    except DataError as error:
        raise LeaderboardError(
            "BOARD-09", f"{error.code}: {error.message}", fix=error.fix
        ) from None
    if task.kind == "reconstruction" and not (array > 0).any():
        raise LeaderboardError("BOARD-09", f"{file}: holds no positive value.")
    if task.kind == "reconstruction" and min(array.shape[1:]) < 7:
        raise LeaderboardError("BOARD-09", f"{file}: slices below 7x7 have no SSIM.")
    place = _place(folder, index)
    np.save(place, array, allow_pickle=False)
    return Case(
        name=file.name, patient=task.patients.get(file.name, file.name), shape=array.shape,
        affine=affine, sha256=_sha256(place),
    )  # fmt: skip


def _place(folder: Path, index: int) -> Path:
    return folder / "references" / f"{index:04d}.npy"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
