"""A run folder: configuration, environment, log, metrics, checkpoints; and the way back.

```
config.yaml  environment.json  run.log  metrics.jsonl  tensorboard/  checkpoints/step_00000100/
weights/ ``` A checkpoint is written beside its final name, with a manifest that holds its SHA-256
written last, and renamed; whatever a killed process leaves is either complete or ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from core_mri.config import config_hash, differences, save_config, to_mapping
from core_mri.devices import environment
from core_mri.errors import ConfigError, DataError, Interrupted, RunError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
KEPT_CHECKPOINTS = 2
RESUMABLE = ("out", "steps_per_log", "checkpoint_every")
"""Keys of a configuration that may differ when a run resumes: they change no result."""


class Run:
    """One run folder, opened for writing. Use :meth:`open` in a ``with`` statement.

    Args:
        out: The folder.
        main: Whether this process writes; the other workers of a run share the object's interface
            and write nothing.
    """

    def __init__(self, out: Path, *, main: bool) -> None:
        self.out = out
        self.main = main
        self.stop_requested = False
        self._board: SummaryWriter | None = None
        self._handler: logging.Handler | None = None
        self._old_handlers: dict[int, Any] = {}

    @classmethod
    def open(cls, out: Path, config: object, *, resume: bool = False, main: bool = True) -> Run:
        """Create the folder, or continue the run it holds.

        Args:
            out: The folder; missing or empty for a new run.
            config: The resolved configuration (dataclass), saved as ``config.yaml``.
            resume: Demand that there is a run to continue.
            main: See :class:`Run`.

        Raises:
            ConfigError: CONFIG-03 when the folder holds something else, CONFIG-04 with every
                difference when it holds a run of another configuration.
            DataError: DATA-07 when the folder cannot be written.
        """
        run = cls(out, main=main)
        if not main:
            return run
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        marker = out / RUN_FILE
        if marker.exists():
            _check_same(out, json.loads(marker.read_text())["config"], to_mapping(config))
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
            (out / "environment.json").write_text(facts + "\n", encoding="utf-8")
        return run

    def __enter__(self) -> Run:
        if self.main:
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
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
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

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Save `state` as the checkpoint after `step` steps and keep the newest two.

        Args:
            step: Number of finished steps.
            state: Tensors, numbers, strings and containers of them (what ``torch.load`` reads with
                ``weights_only=True``).

        Raises:
            DataError: DATA-07 when there is no space; older checkpoints stay.
        """
        if not self.main:
            return
        folder = self.out / "checkpoints"
        _write_checkpoint(folder, step, state)
        for old in sorted(folder.glob("step_*"))[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def keep_checkpoint(self, name: str, step: int, state: Mapping[str, Any]) -> Path:
        """As `save_checkpoint`, but in the folder `name` of the run, where all of them stay.

        Returns:
            The folder of the checkpoint, on the main worker.
        """
        if not self.main:
            return self.out / name
        return _write_checkpoint(self.out / name, step, state)

    def load_checkpoint(self) -> tuple[int, dict[str, Any]] | None:
        """The newest complete checkpoint as (finished steps, state), None when there is none.

        A damaged one is passed over with a warning for the one before it. Later lines of
        ``metrics.jsonl`` are cut off, so that each step is written once.

        Raises:
            RunError: RUN-03 when there are checkpoints and none is whole.
        """
        import torch

        found = sorted((self.out / "checkpoints").glob("step_*"), reverse=True)
        for folder in found:
            try:
                manifest = json.loads((folder / "manifest.json").read_text())
                for name, expected in manifest["sha256"].items():
                    if file_sha256(folder / name) != expected:
                        raise ValueError(f"{name} does not match its hash")
                state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                log.warning(
                    "checkpoint %s is damaged (%s); trying the one before",
                    folder.name,
                    error,
                )
                continue
            step = int(manifest["step"])
            if self.main:
                self._cut_metrics(step)
            return step, state
        if found:
            raise RunError(
                "RUN-03",
                f"{self.out / 'checkpoints'}: none of {len(found)} checkpoints is whole.",
                fix="Start again in an empty folder.",
            )
        return None

    def check_interrupt(self, step: int, state: Callable[[], Mapping[str, Any]]) -> None:
        """After Ctrl-C or SIGTERM: save, then leave.

        Raises:
            Interrupted: With where the checkpoint is and how to go on.
        """
        if not self.stop_requested:
            return
        self.save_checkpoint(step, state())
        raise Interrupted(
            f"stopped after step {step}; checkpoint kept in {self.out / 'checkpoints'}. "
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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, streamed."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write ``step_N`` aside, its manifest last, and rename it into `folder`."""
    import torch

    aside, final = folder / f".partial_{step:08d}", folder / f"step_{step:08d}"
    with writing(folder):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        with (aside / "state.pt").open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        manifest = {"step": step, "sha256": {"state.pt": file_sha256(aside / "state.pt")}}
        write_atomically(aside / "manifest.json", json.dumps(manifest).encode())
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
    return final


def _check_same(out: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = [line for line in differences(old, new) if line.split(":")[0] not in RESUMABLE]
    if changed:
        raise ConfigError(
            "CONFIG-04",
            f"{out}: holds a run of another configuration: {'; '.join(changed)}.",
            fix="Choose another --out, or use the same configuration to resume.",
        )
