"""Saving, finding and keeping checkpoints.

```
step_00000100-4f1c9a02/        the attempt's token tells its files from those of a killed one
  rank_00000.safetensors       the tensors that this worker writes
  rank_00000.json              their places, size and SHA-256: this worker is done
  state.json                   numbers and names around the tensors
  manifest.json                written last, by worker 0, when every worker is done
```

A checkpoint exists when its manifest does. The newest whole one is found by looking, in the order
of steps, never of times: clocks of machines differ, and no list can be out of date.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from core_mri.checkpoints.state import Chunk, assemble, chunks_of, join, split
from core_mri.checkpoints.storage import Storage, open_storage
from core_mri.devices import rank, world_size
from core_mri.errors import CoreMRIError, DataError, RunError
from core_mri.runs import file_sha256

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, STATE, OWNER = "manifest.json", "state.json", "owner.json"
PATIENCE_S = 300.0
"""How long worker 0 waits for the files of the others."""
SETTLING_S = 60.0
"""How long a network file system may hide a new file from the other workers."""
_FOLDER = re.compile(r"step_(\d{8,})-([0-9a-f]{8})")


class Checkpoints:
    """The checkpoints of one training; all workers make the same calls.

    Args:
        place: A folder that all workers see, or a URL such as ``s3://bucket/runs/one``.
        keep: Newest ones that stay; 0 keeps all.
        background: Write while the training goes on. An error comes with the next call.
        patience_s: How long worker 0 waits for the others, seconds.
    """

    def __init__(
        self,
        place: str | Path,
        *,
        keep: int = 2,
        background: bool = True,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.storage: Storage = open_storage(place)
        self.keep = keep
        self.background = background
        self.patience_s = patience_s
        self._rank, self._world_size = rank(), world_size()
        self._token = _shared(secrets.token_hex(4))
        self._owned = False
        self._resumed: int | None = None
        self._saved: int | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, state: Mapping[str, Any]) -> str:
        """Save `state` as the checkpoint after `step` steps.

        Tensors are copied before this returns; the rest happens in the background.

        Args:
            step: Number of finished steps.
            state: Mappings, lists and tuples of tensors, numbers, strings, booleans and None; of
                a tensor that all workers have under one name is the same in all of them, or a
                DTensor; of the others, and of what is no tensor, those of worker 0 count.

        Returns:
            The name of its folder.

        Raises:
            DataError: DATA-07 when the storage cannot be written, here or for the one before; what
                was complete stays.
            RunError: RUN-08 when the files of a worker do not appear, RUN-09 when another run
                writes to the same place.
        """
        self.wait()
        folder = f"step_{step:08d}-{self._token}"
        if step == self._saved:
            return folder
        self._saved = step
        tree, tensors = split(state)
        shared = _in_all_workers(list(tensors))
        chunks = chunks_of(tensors, shared, self._rank, self._world_size)
        arguments = (folder, step, tree, sorted(tensors), chunks)
        self._thread = threading.Thread(target=self._run, args=arguments, daemon=True)
        self._thread.start()
        if not self.background:
            self.wait()
        return folder

    def wait(self) -> None:
        """Until the checkpoint that is being written is complete.

        Raises:
            CoreMRIError: As `save`.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def take_over(self) -> None:
        """Write down whose place this is from now on, and see that all workers can read it.

        Another training that still saves here is refused from then on.

        Raises:
            RunError: RUN-08.
        """
        if self._rank == 0:
            self._put(OWNER, self._token)
        self._owned = True
        if self._world_size == 1:
            return
        dist.barrier()
        seen: list[bool] = [False] * self._world_size
        dist.all_gather_object(seen, self._sees_owner())
        if not all(seen):
            blind = ", ".join(str(rank) for rank, sees in enumerate(seen) if not sees)
            raise _not_shared(
                self.storage.name, f"worker(s) {blind} do not see what worker 0 writes"
            )

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """The newest whole checkpoint as (finished steps, state), None when there is none.

        Tensors are whole and on the processor. A damaged checkpoint is passed over with a warning
        for the one before it.

        Raises:
            RunError: RUN-03 when there are checkpoints and none is whole.
        """
        self.wait()
        folder = _shared(self._newest() if self._rank == 0 else "")
        if not folder:
            return None
        manifest = self._json(folder, MANIFEST)
        self._resumed = int(manifest["step"])
        return self._resumed, self._read(folder, manifest)

    def _newest(self) -> str:
        """Folder of the newest checkpoint whose files match their hashes; empty if there is none.

        Raises:
            RunError: RUN-03.
        """
        found = self._complete()
        for folder in reversed(found):
            try:
                manifest = self._json(folder, MANIFEST)
                if manifest["format"] != FORMAT:
                    raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
                for name, facts in manifest["files"].items():
                    with self.storage.reading(f"{folder}/{name}") as path:
                        if file_sha256(path) != facts["sha256"]:
                            raise ValueError(f"{name} does not match its hash")
            except (OSError, ValueError, KeyError, TypeError, CoreMRIError) as error:
                log.warning("checkpoint %s is damaged (%s); trying the one before", folder, error)
                continue
            return folder
        if found:
            raise RunError(
                "RUN-03",
                f"{self.storage.name}: none of {len(found)} checkpoints is whole.",
                fix="Start again in an empty folder.",
            )
        return ""

    def _complete(self) -> list[str]:
        """Folders with a manifest, by step."""
        names = {name.rpartition("/")[0] for name in self.storage.files() if _ends(name, MANIFEST)}
        return sorted((name for name in names if _FOLDER.fullmatch(name)), key=_step_of)

    def _read(self, folder: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
        from safetensors import safe_open

        found: dict[str, list[tuple[tuple[int, ...], Any]]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, facts in manifest["files"].items():
            if not name.endswith(".safetensors"):
                continue
            with self.storage.reading(f"{folder}/{name}") as path, safe_open(path, "pt") as file:
                for key, (shape, offset) in facts["tensors"].items():
                    found.setdefault(key, []).append((tuple(offset), file.get_tensor(key).clone()))
                    shapes[key] = tuple(shape)
        tensors = {key: assemble(shapes[key], chunks) for key, chunks in found.items()}
        state: dict[str, Any] = join(self._json(folder, STATE), tensors)
        return state

    def _run(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as error:
            self._error = error

    def _write(
        self, folder: str, step: int, tree: object, names: list[str], chunks: Mapping[str, Chunk]
    ) -> None:
        try:
            self._write_part(folder, chunks)
            if self._rank:
                return
            state = self._put(f"{folder}/{STATE}", tree)
            files = {STATE: {"sha256": state}, **self._parts(folder)}
            _check_whole(names, files)
            self._check_owner()
            facts = {"format": FORMAT, "step": step, "world_size": self._world_size}
            self._put(f"{folder}/{MANIFEST}", facts | {"files": files})
        except BaseException:
            self.storage.delete(folder)
            raise
        self._tidy(folder)

    def _write_part(self, folder: str, chunks: Mapping[str, Chunk]) -> None:
        """The tensors of this worker, then the file that says so."""
        from safetensors.torch import save_file

        name = f"rank_{self._rank:05d}"
        with self.storage.writing(f"{folder}/{name}.safetensors") as path:
            try:
                save_file({key: chunk.values for key, chunk in chunks.items()}, path)
            except Exception as error:  # safetensors has its own for a full disk
                raise OSError(28, str(error)) from error
            digest = file_sha256(path)
        places = {key: [chunk.shape, chunk.offset] for key, chunk in chunks.items()}
        self._put(f"{folder}/{name}.json", {"sha256": digest, "tensors": places})

    def _parts(self, folder: str) -> dict[str, Any]:
        """What every worker wrote, waiting for it.

        Raises:
            RunError: RUN-08.
        """
        missing = {f"rank_{number:05d}" for number in range(self._world_size)}
        parts: dict[str, Any] = {}
        deadline = time.monotonic() + self.patience_s
        pause = 0.01
        while True:
            there = set(self.storage.files())
            for name in sorted(missing):
                if f"{folder}/{name}.json" in there:
                    parts[f"{name}.safetensors"] = self._json(folder, f"{name}.json")
                    missing.discard(name)
            if not missing:
                return parts
            if time.monotonic() > deadline:
                late = ", ".join(sorted(missing))
                told = f"after {self.patience_s:.0f} s nothing of {late} is there"
                raise _not_shared(self.storage.name, told)
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _sees_owner(self) -> bool:
        deadline = time.monotonic() + min(self.patience_s, SETTLING_S)
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError, DataError):
                if self._json("", OWNER) == self._token:
                    return True
            time.sleep(0.1)
        return False

    def _check_owner(self) -> None:
        """Two runs of one name would take turns in deleting each other's checkpoints.

        Raises:
            RunError: RUN-09.
        """
        if not self._owned:
            self._put(OWNER, self._token)
            self._owned = True
        elif self._json("", OWNER) != self._token:
            raise RunError(
                "RUN-09",
                f"{self.storage.name}: another run has taken over these checkpoints.",
                fix="Stop one of the two, or give it another place.",
            )

    def _tidy(self, newest: str) -> None:
        """Old checkpoints go, and what killed or superseded attempts left."""
        complete = self._complete()
        rewritten = {
            folder
            for folder in complete
            if self._resumed is not None
            and _step_of(folder)[0] > self._resumed
            and not folder.endswith(self._token)
        }
        rest = [folder for folder in complete if folder not in rewritten]
        kept = set(rest[-self.keep :] if self.keep else rest) | {newest}
        folders = {name.partition("/")[0] for name in self.storage.files()}
        for folder in sorted(folders - kept):
            if _FOLDER.fullmatch(folder):
                self.storage.delete(folder)

    def _put(self, name: str, content: object) -> str:
        data = json.dumps(content).encode()
        with self.storage.writing(name) as path:
            path.write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    def _json(self, folder: str, name: str) -> Any:
        with self.storage.reading(f"{folder}/{name}".lstrip("/")) as path:
            return json.loads(path.read_bytes())


def _check_whole(names: list[str], files: Mapping[str, Any]) -> None:
    """Every tensor of worker 0 must have been written by somebody."""
    written = {key for facts in files.values() for key in facts.get("tensors", ())}
    missing = sorted(set(names) - written)
    if missing:
        raise DataError(
            "DATA-07",
            f"workers hold different states: nobody wrote {', '.join(missing[:5])}.",
            fix="Report this with your versions (core-mri info).",
        )


def _not_shared(place: str, told: str) -> RunError:
    return RunError(
        "RUN-08",
        f"{place}: {told}.",
        fix="All workers must see the same storage: take a shared folder or an object store.",
    )


def _in_all_workers(names: list[str]) -> set[str]:
    if world_size() == 1:
        return set(names)
    found: list[list[str]] = [[]] * world_size()
    dist.all_gather_object(found, names)
    return set(names).intersection(*found)


def _shared(value: str) -> str:
    """The value of worker 0, in all workers."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def _step_of(folder: str) -> tuple[int, str]:
    found = _FOLDER.fullmatch(folder)
    assert found is not None
    return int(found[1]), found[2]


def _ends(name: str, last: str) -> bool:
    return name.rpartition("/")[2] == last
