"""One submission from its files to its scores, or to a refusal that says why."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from core_mri.errors import CoreMRIError, LeaderboardError
from downstream.leaderboard.board import Board
from downstream.leaderboard.fingerprints import (
    are_copies,
    content_hash,
    distance,
    judged,
    repeats_references,
    sketch,
)
from downstream.leaderboard.reading import Submission
from downstream.leaderboard.scoring import by_patient, case_scores
from downstream.leaderboard.store import Store
from downstream.leaderboard.task import Card, check_name


def submit(
    board: Board, source: Path, *, owner: str, name: str, card: Card, ticket: str, scratch: Path
) -> str:
    """Score a submission; scores of patients stay in the board, which shows means alone.

    Every file is read and judged by itself, then held against earlier submissions, and only then
    are references opened.

    Args:
        board: The leaderboard.
        source: Zip or folder of the files.
        owner: Who submits.
        name: How it shall be called.
        card: Of the model, as `load_card` gives it.
        ticket: Of this submission; the same again, after a kill, does not count twice.
        scratch: Folder for copies, which are deleted in the end.

    Returns:
        Its name on the board.

    Raises:
        LeaderboardError: BOARD-01 to BOARD-08, see their meanings.
        DataError: DATA-13 for a file that leads to others, DATA-07 when the disk is full.
    """
    check_name(name)
    store = Store(board)
    with board.turn():
        row = store.begin(owner, name, card, ticket, time.time())
        if row is None:
            return str(store.of_ticket(ticket))
        folder = Path(tempfile.mkdtemp(prefix="submission-", dir=scratch))
        try:
            _judge(board, store, row, Submission(board, source, folder))
        except CoreMRIError as error:
            store.refuse(row, error.code)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return name


def _judge(board: Board, store: Store, row: int, files: Submission) -> None:
    task, key = board.task, board.key
    content = content_hash((files.read(case) for case in board.cases), task.kind)
    sketches = [
        sketch(judged(files.read(case), task.kind), task.kind, key, index)
        for index, case in enumerate(board.cases)
    ]
    for earlier, its_content, its_sketches in store.fingerprints():
        equal = its_content == content
        if equal or are_copies(sketches, its_sketches, task.kind, task.near):
            raise LeaderboardError(
                "BOARD-06",
                f"it is {'equal' if equal else 'nearly equal'} to the submission {earlier!r}.",
                fix=f"Nearly means: in more than half of the cases by {task.near:g} or less, as "
                "the task defines it.",
            )
    scores, distances = [], []
    for index, case in enumerate(board.cases):
        reference, estimate = board.reference(index), files.read(case)
        pair = judged(reference, task.kind), judged(estimate, task.kind)
        distances.append(distance(*pair, task.kind))
        scores.append(case_scores(board, case, reference, estimate))
    if repeats_references(distances, task.near):
        raise LeaderboardError(
            "BOARD-07",
            "it repeats hidden references.",
            fix="No method comes so near to them. If yours does, write to who runs the board.",
        )
    store.score(row, content, sketches, by_patient(board, scores))
