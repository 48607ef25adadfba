"""A run folder: configuration, environment, log, metrics, checkpoints; and the way back.

```
config.yaml  environment.json  run.log  metrics.jsonl  tensorboard/  checkpoints/  weights/
```
Whatever a killed process leaves is either complete or ignored (`core_mri.checkpoints`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any

from core_mri.config import config_hash, differences, save_config, to_mapping
from core_mri.devices import environment, is_main, world_size
from core_mri.errors import ConfigError, CoreMRIError, DataError, Interrupted, RunError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

    from core_mri.checkpoints import Checkpoints

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
KEPT_CHECKPOINTS = 2
RESUMABLE = ("out", "steps_per_log", "checkpoint_every", "micro_batch")
"""Keys of a configuration that may differ when a run resumes: they change no result (`micro_batch`
the order of summation alone)."""


class Run:
    """One run folder, opened for writing. Use :meth:`open` in a ``with`` statement.

    Args:
        out: The folder.
        main: Whether this process writes; the other workers of a run share the object's interface
            and write nothing but their part of checkpoints.
        checkpoints: Folder or URL of the checkpoints; empty is ``checkpoints/`` of the run.
    """

    def __init__(self, out: Path, *, main: bool, checkpoints: str = "") -> None:
        self.out = out
        self.main = main
        self._place = checkpoints or out / "checkpoints"
        self._checkpoints: Checkpoints | None = None
        self._lock: IO[str] | None = None
        self.stop_requested = False
        self._board: SummaryWriter | None = None
        self._handler: logging.Handler | None = None
        self._old_handlers: dict[int, Any] = {}

    @classmethod
    def open(
        cls,
        out: Path,
        config: object,
        *,
        resume: bool = False,
        main: bool = True,
        checkpoints: str = "",
    ) -> Run:
        """Create the folder, or continue the run it holds.

        Args:
            out: The folder; missing or empty for a new run.
            config: The resolved configuration (dataclass), saved as ``config.yaml``.
            resume: Demand that there is a run to continue.
            main: See :class:`Run`.
            checkpoints: See :class:`Run`.

        Raises:
            ConfigError: CONFIG-03 when the folder holds something else, CONFIG-04 with every
                difference when it holds a run of another configuration.
            DataError: DATA-07 when the folder cannot be written.
        """
        run = cls(out, main=main, checkpoints=checkpoints)
        if not main:
            return run
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        marker = out / RUN_FILE
        if marker.exists():
            check_same(out, config)
        elif any(out.iterdir()):
            raise ConfigError(
                "CONFIG-03",
                f"{out}: the output folder is not empty and holds no run.",
                fix="Choose another folder with --out, or empty this one.",
            )
        elif resume:
            raise ConfigError(
                "CONFIG-04",
                f"{out}: there is no run to resume.",
                fix="Leave out --resume.",
            )
        with writing(out):
            save_config(config, out / "config.yaml")
            write_atomically(
                marker,
                json.dumps(
                    {"config": to_mapping(config), "config_sha256": config_hash(config)}
                ).encode(),
            )
            facts = json.dumps(environment(), indent=2)
            write_atomically(out / "environment.json", (facts + "\n").encode())
        return run

    @contextlib.contextmanager
    def part(self, name: str, config: object) -> Iterator[Run]:
        """A run in the folder `name` of this one; a stop asked of one is asked of both.

        Args:
            name: Folder, relative to that of this run.
            config: The resolved configuration of the part (dataclass).

        Raises:
            ConfigError: As :meth:`open`.
            DataError: As :meth:`open`.
        """
        with Run.open(self.out / name, config, main=is_main()) as own:
            if self.stop_requested:  # before the part took the signals over
                own.request_stop()
            yield own
        if own.stop_requested:  # by a signal during its last step
            self.request_stop()

    def __enter__(self) -> Run:
        if self.main:
            self._lock = locked(self.out)
            self._handler = logging.FileHandler(self.out / "run.log", encoding="utf-8")
            self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            logging.getLogger().addHandler(self._handler)
        with contextlib.suppress(
            ValueError
        ):  # signals belong to the main thread; Ray runs us in another
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._finish_checkpoints(error)
        finally:
            self._close(error)

    def _finish_checkpoints(self, error: BaseException | None) -> None:
        """Complete the one that is being written, unless it waits for workers that have left."""
        if self._checkpoints is None or (error is not None and world_size() > 1):
            return
        try:
            self._checkpoints.wait()
        except CoreMRIError as lost:
            if error is None:
                raise
            log.warning("the last checkpoint was not completed: %s", lost)

    def _close(self, error: BaseException | None) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        if self._lock is not None:
            self._lock.close()
        if self._board is not None:
            self._board.close()
        if self._handler is not None:
            if error is not None:  # to the file alone: whoever catches it tells the user
                self._handler.handle(
                    logging.makeLogRecord(
                        {"msg": f"stopped: {error}", "levelname": "ERROR", "levelno": logging.ERROR}
                    )
                )
            logging.getLogger().removeHandler(self._handler)
            self._handler.close()

    def log_metrics(self, step: int, **values: float) -> None:
        """Append one line to ``metrics.jsonl`` and to TensorBoard.

        Every key ``loss`` gets a twin ``loss_hex`` (`float.hex`), so that two runs can be compared
        bit by bit. Values that are not finite are written as null.
        """
        if not self.main:
            return
        line: dict[str, object] = {"step": step}
        for name, value in values.items():
            line[name] = value if math.isfinite(value) else None
            if name == "loss":
                line["loss_hex"] = float(value).hex()
        with (
            writing(self.out),
            (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(line) + "\n")
        board = self._tensorboard()
        for name, value in values.items():
            board.add_scalar(name, value, step)

    def log_figure(self, name: str, figure: Figure, step: int) -> None:
        """Add a picture to TensorBoard."""
        if not self.main:
            return
        import numpy as np
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        self._tensorboard().add_image(name, pixels, step, dataformats="HWC")

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of ``metrics.jsonl`` but an unfinished last one of a killed process."""
        path = self.out / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    @property
    def checkpoints(self) -> Checkpoints:
        """Where the states of this run are saved and found; all workers ask at the same time."""
        if self._checkpoints is None:
            from core_mri.checkpoints import Checkpoints

            self._checkpoints = Checkpoints(self._place, keep=KEPT_CHECKPOINTS)
        return self._checkpoints

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Save `state` as the checkpoint after `step` steps, and keep the newest two.

        It is written while the training goes on; see `core_mri.checkpoints.Checkpoints.save`.

        Args:
            step: Number of finished steps.
            state: Tensors, numbers, strings and containers of them.

        Raises:
            DataError: DATA-07 when there is no space; older checkpoints stay.
            RunError: RUN-08 or RUN-09.
        """
        self.checkpoints.save(step, state)

    def keep_checkpoint(self, name: str, step: int, state: Mapping[str, Any]) -> Path:
        """As `save_checkpoint`, but in the folder `name` of the run, where all of them stay.

        Returns:
            The folder of the checkpoint.
        """
        from core_mri.checkpoints import Checkpoints

        snapshots = Checkpoints(self.out / name, keep=0, background=False)
        return self.out / name / snapshots.save(step, state)

    def load_checkpoint(self) -> tuple[int, dict[str, Any]] | None:
        """The newest whole checkpoint as (finished steps, state), None when there is none.

        A damaged one is passed over with a warning for the one before it. Later lines of
        ``metrics.jsonl`` are cut off, so that each step is written once.

        Raises:
            RunError: RUN-03 when there are checkpoints and none is whole, RUN-08 when workers do
                not see the same storage.
        """
        self.checkpoints.take_over()
        found = self.checkpoints.load()
        if self.main:
            self._cut_metrics(found[0] if found else 0)
        return found

    def check_interrupt(self, step: int, state: Callable[[], Mapping[str, Any]]) -> None:
        """After Ctrl-C or SIGTERM: save, then leave.

        Raises:
            Interrupted: With where the checkpoint is and how to go on.
        """
        if not self.stop_requested:
            return
        self.save_checkpoint(step, state())
        self.checkpoints.wait()
        raise Interrupted(
            f"stopped after step {step}; checkpoint kept in {self.checkpoints.storage.name}. "
            "Run the same command again with --resume to continue."
        )

    def request_stop(self) -> None:
        """Ask the loop to save and stop after the current step, as a signal does."""
        self.stop_requested = True

    @contextlib.contextmanager
    def progress(self, total: int, description: str) -> Iterator[Callable[[int, str], None]]:
        """A progress bar on a terminal, nothing in a file or in a worker.

        Yields:
            ``update(done, text)``.
        """
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        if not (self.main and console.is_terminal):
            yield lambda _done, _text: None
            return
        columns = (
            TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(description, total=total, text="")
            yield lambda done, text: bar.update(task, completed=done, text=text)

    def _tensorboard(self) -> SummaryWriter:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.out / "tensorboard"))
        return self._board

    def _cut_metrics(self, step: int) -> None:
        path = self.out / "metrics.jsonl"
        if path.exists():
            kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] < step]
            write_atomically(path, "".join(kept).encode())

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop_requested = True


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` while writing under `path` into one clear error.

    Raises:
        DataError: DATA-07 naming the path and the cause (no space, no permission, ...).
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            "DATA-07",
            f"{path}: cannot be written: {error.strerror or error}.",
            fix="Free space or choose another folder; what was complete is kept.",
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to disk, rename: readers never see a part."""
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def locked(folder: Path) -> IO[str] | None:
    """A file that this process alone holds, until it is closed or the process ends.

    None where files cannot be locked.

    Raises:
        RunError: RUN-09 when another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not on this system
        return None
    with writing(folder):
        file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunError(
            "RUN-09",
            f"{folder}: another process is writing to this run.",
            fix="Wait for it, stop it, or choose another --out.",
        ) from None
    except OSError as error:
        log.warning(
            "%s: its file system has no locks (%s); start this run once only", folder, error
        )
    return file


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, streamed."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_same(out: Path, config: object) -> None:
    """Refuse to continue the run of `out`, if it holds one, with another configuration.

    Raises:
        ConfigError: CONFIG-04 with every difference that changes a result.
    """
    marker = out / RUN_FILE
    if not marker.exists():
        return
    lines = differences(json.loads(marker.read_text())["config"], to_mapping(config))
    changed = [line for line in lines if line.split(":")[0] not in RESUMABLE]
    if changed:
        raise ConfigError(
            "CONFIG-04",
            f"{out}: holds a run of another configuration: {'; '.join(changed)}.",
            fix="Choose another --out, or use the same configuration to resume.",
        )
