"""The parts of a service put together, the same in one process and on Ray."""

from __future__ import annotations

from core_mri.errors import CoreMRIError, WeightsError
from data_registry.deidentify.identifiers import load_key
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


def assemble(
    config: ServeConfig, places: Places, sources: tuple[Served, ...], begin: Start, asked: Asked
) -> Service:
    """A service whose workers have not begun.

    Args:
        config: Settings.
        places: Folders, opened.
        sources: What is served.
        begin: Where jobs run.
        asked: Who answers boxes and clicks.

    Raises:
        DataError: DATA-07 when the data folder cannot be written.
    """
    store = Store(places.database)
    metrics = Metrics(store)
    spool = Spool(places.spool)
    workers = Workers(
        store, spool, places, sources, load_key(places.key, create=True), config.limits,
        number=config.workers, device=config.device, begin=begin, ended=metrics.job_ended,
    )  # fmt: skip
    prompting = Prompting(places, asked)
    return Service(store, spool, workers, prompting, metrics, places, sources, config.limits)


def _described(source: str, device: str) -> Served:
    if is_solver(source):
        return solver(source)
    try:
        facts = call("do_describe", (source, device), timeout_s=_DESCRIBE_S, memory_gb=64)
    except CoreMRIError as error:
        raise WeightsError(error.code, error.message, fix=error.fix) from None
    return Served(**{**facts, "labels": {int(k): v for k, v in facts["labels"]}})
