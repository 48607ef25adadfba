"""The parts of a service put together, the same in one process and on Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from core_mri.errors import ConfigError, CoreMRIError, WeightsError
from data_registry.deidentify.identifiers import load_key
from downstream.leaderboard.board import Board
from downstream.serving.child import call, preload
from downstream.serving.observing import Metrics
from downstream.serving.prompting import Asked, Prompting
from downstream.serving.service import Service
from downstream.serving.settings import Places, ServeConfig
from downstream.serving.sources import Served, check_names, is_solver, solver
from downstream.serving.spool import Spool
from downstream.serving.store import Store
from downstream.serving.worker import Start, Workers

_DESCRIBE_S = 300.0


def described(config: ServeConfig) -> tuple[Served, ...]:
    """What is served; weights are loaded once, in a process of their own.

    Raises:
        WeightsError: For weights that cannot be served.
        ConfigError: CONFIG-05 for two of one name.
    """
    if has_networks(config):
        preload(networks=True)
    sources = tuple(_described(source, config.device) for source in config.sources)
    check_names(sources)
    return sources


def has_networks(config: ServeConfig) -> bool:
    """Whether weights are served, not only solvers."""
    return not all(map(is_solver, config.sources))


def open_boards(folders: Sequence[Path]) -> dict[str, Board]:
    """Leaderboards by name.

    Raises:
        LeaderboardError: BOARD-01 for a folder that is none.
        ConfigError: CONFIG-05 for two of one name.
    """
    boards = [Board.open(folder) for folder in folders]
    names = [board.task.name for board in boards]
    if len(set(names)) < len(names):
        raise ConfigError(
            "CONFIG-05", f"--leaderboards: two have the same name: {', '.join(names)}."
        )
    return dict(zip(names, boards, strict=True))


def assemble(
    config: ServeConfig,
    places: Places,
    sources: tuple[Served, ...],
    begin: Start,
    asked: Asked,
    boards: Mapping[str, Board],
) -> Service:
    """A service whose workers have not begun.

    Args:
        config: Settings.
        places: Folders, opened.
        sources: What is served.
        begin: Where jobs run.
        asked: Who answers boxes and clicks.
        boards: Leaderboards by name.

    Raises:
        DataError: DATA-07 when the data folder cannot be written.
    """
    store = Store(places.database)
    metrics = Metrics(store)
    spool = Spool(places.spool)
    workers = Workers(
        store, spool, places, sources, load_key(places.key, create=True), config.limits,
        number=config.workers, device=config.device, begin=begin, ended=metrics.job_ended,
        boards={name: board.folder.resolve() for name, board in boards.items()},
    )  # fmt: skip
    prompting = Prompting(places, asked)
    return Service(store, spool, workers, prompting, metrics, places, sources, config.limits,
                   boards)  # fmt: skip


def _described(source: str, device: str) -> Served:
    if is_solver(source):
        return solver(source)
    try:
        facts = call("do_describe", (source, device), timeout_s=_DESCRIBE_S, memory_gb=64)
    except CoreMRIError as error:
        raise WeightsError(error.code, error.message, fix=error.fix) from None
    return Served(**{**facts, "labels": {int(k): v for k, v in facts["labels"]}})
