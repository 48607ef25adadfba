"""A submission to a leaderboard, scored in the process of its job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from core_mri.errors import ServingError
from downstream.leaderboard.board import Board
from downstream.leaderboard.showing import facts
from downstream.leaderboard.submitting import submit
from downstream.leaderboard.task import load_card
from downstream.serving.orders import JobWork


def submission_job(
    sent: Path, work: JobWork, progress: Callable[[float, str], None]
) -> dict[str, Any]:
    """Score a zip; the job's id is the ticket, so a job that runs again counts once.

    Returns:
        The report: rank and means, as the board shows them to everybody.

    Raises:
        ServingError: SERVE-50 when the service has this leaderboard no more.
        CoreMRIError: As `submit`.
    """
    name = str(work.request["leaderboard"])
    if name not in work.boards:
        raise ServingError("SERVE-50", "the leaderboard is not served any more.")
    board = Board.open(work.boards[name])
    progress(0.1, "scoring")
    shown = submit(
        board, sent, owner=str(work.request["owner"]), name=str(work.request["submission"]),
        card=load_card(work.request["card"]), ticket=work.job, scratch=work.scratch,
    )  # fmt: skip
    (row,) = (row for row in facts(board)["submissions"] if row["name"] == shown)
    kept = {key: row[key] for key in ("rank", "name", "scores", "behind")}
    return {"kind": "submission", "leaderboard": name, **kept}
