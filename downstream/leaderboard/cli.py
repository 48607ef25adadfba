"""The verb `core-mri leaderboard`: create, submit, show, export."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from core_mri.config import load_config
from core_mri.runs import write_atomically, writing
from downstream.leaderboard.board import Board, create
from downstream.leaderboard.task import TaskConfig, load_card


@dataclass(frozen=True, kw_only=True)
class _Create:
    """Make a leaderboard from a task and its hidden references."""

    task: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TASK.yaml")]
    """The task; downstream/configs/leaderboards has examples."""
    references: Path
    """Folder of the reference files; they are copied as arrays."""
    board: Path
    """Folder of the leaderboard, which must not exist."""


@dataclass(frozen=True, kw_only=True)
class _Submit:
    """Score a submission."""

    board: Annotated[Path, tyro.conf.Positional]
    """Folder of the leaderboard."""
    submission: Annotated[Path, tyro.conf.Positional]
    """Zip, or folder, of the files of the task and nothing else."""
    name: str
    """How it shall be called on the board."""
    card: Path
    """YAML file of the model card."""
    owner: str
    """Who submits; limits count by owner."""


@dataclass(frozen=True, kw_only=True)
class _Show:
    """Print the ranking."""

    board: Annotated[Path, tyro.conf.Positional]
    """Folder of the leaderboard."""
    json: bool = False
    """Print a JSON object with intervals and model cards."""


@dataclass(frozen=True, kw_only=True)
class _Export:
    """Write the board as one self-contained page."""

    board: Annotated[Path, tyro.conf.Positional]
    """Folder of the leaderboard."""
    out: Path
    """HTML file."""


def main(arguments: Sequence[str]) -> int:
    """Run an action.

    Args:
        arguments: Words after ``core-mri leaderboard``.

    Returns:
        The exit code.
    """
    words = list(arguments)
    if not words or words[0] in ("-h", "--help"):
        print("core-mri leaderboard ACTION ...: tasks with hidden references\n")
        for name, (options, _) in _ACTIONS.items():
            print(f"  {name:<7} {str(options.__doc__).partition(chr(10))[0]}")
        print("\ncore-mri leaderboard ACTION --help lists the flags of an action.")
        return 0 if words else 2
    if words[0] not in _ACTIONS:
        from core_mri.errors import ConfigError

        raise ConfigError("CONFIG-01", f"no action {words[0]!r}; there are {', '.join(_ACTIONS)}.")
    options, run = _ACTIONS[words[0]]
    run(tyro.cli(options, args=words[1:], prog=f"core-mri leaderboard {words[0]}",
                 config=(tyro.conf.FlagCreatePairsOff,)))  # fmt: skip
    return 0


def _create(options: _Create) -> None:
    task = load_config(TaskConfig, options.task)
    board = create(task, options.references, options.board)
    print(f"{board.folder}: {len(board.cases)} files of {len(board.patients)} patients")


def _submit(options: _Submit) -> None:
    from downstream.leaderboard.showing import facts
    from downstream.leaderboard.submitting import submit

    board = Board.open(options.board)
    with tempfile.TemporaryDirectory(prefix="core-mri-") as scratch:
        name = submit(
            board, options.submission, owner=options.owner, name=options.name,
            card=load_card(options.card), ticket=uuid.uuid4().hex, scratch=Path(scratch),
        )  # fmt: skip
    (row,) = (row for row in facts(board)["submissions"] if row["name"] == name)
    score = row["scores"][board.task.metric]
    print(
        f"{name}: {board.task.metric} {score['mean']:g} ({score['ci_low']:g} to "
        f"{score['ci_high']:g}), rank {row['rank']} of {len(facts(board)['submissions'])}"
    )


def _show(options: _Show) -> None:
    from downstream.leaderboard.showing import as_json, facts, note

    board = Board.open(options.board)
    if options.json:
        print(as_json(board), end="")
        return
    found = facts(board)
    print(f"{found['title']}: {found['metric']}, {found['patients']} hidden patients")
    for row in found["submissions"]:
        score = row["scores"][found["metric"]]
        print(f"{row['rank']:>4}  {score['mean']:<8g} {score['ci_low']:g} to {score['ci_high']:g}  "
              f"{row['name']} ({row['owner']})")  # fmt: skip
    print(note(board))


def _export(options: _Export) -> None:
    from downstream.leaderboard.showing import page

    content = page(Board.open(options.board)).encode()
    with writing(options.out):
        write_atomically(options.out, content)
    print(options.out)


_ACTIONS: dict[str, tuple[type, Callable[..., None]]] = {
    "create": (_Create, _create),
    "submit": (_Submit, _submit),
    "show": (_Show, _show),
    "export": (_Export, _export),
}
"""Action -> its flags, and what runs it."""
