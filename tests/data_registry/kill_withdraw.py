"""SIGKILL a withdrawal before each of its changes to the disk, look, run it again, and search.

    python -m tests.data_registry.kill_withdraw --moments 0 --seed 0     # 0: every moment

The process kills itself at its n-th audited system call that opens for writing, renames or deletes
something, so that the moments are the same on every machine. After each kill a reader must find the
registry whole, with the patient or without; after the second run no byte of the patient is left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core_mri.errors import CoreMRIError

EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "open", "os.link"}


def make_registry(folder: Path) -> str:
    """A registry of four patients in two commits, with a cohort; the pseudonym to withdraw."""
    from data_registry import IngestConfig, Registry, Source, ingest
    from data_registry.cohorts import freeze
    from data_registry.dedupe import dedupe
    from tests.data_registry.conftest import save_phantom

    for subject in range(4):
        patient = folder / "scans" / f"patient{subject:02d}"
        save_phantom(patient / "brain_T1.nii.gz", "brain", subject)
        save_phantom(patient / "brain_mask.nii.gz", "brain", subject, label=True)
        if subject % 2:
            source = Source(name="a", licence="CC0-1.0", role="by-name", root=str(folder / "scans"))
            ingest(IngestConfig(registry=folder / "reg", sources=(source,), jobs=1))
    registry = Registry.open(folder / "reg")
    freeze(registry, "all", "role = 'image'")
    dedupe(registry)
    return str(registry.volumes()[0].subject_id)


def withdraw_until(registry: Path, subject: str, moment: int) -> None:
    """Withdraw, but die before the `moment`-th change to the registry."""
    from data_registry import Registry
    from data_registry.governance.withdrawal import WithdrawConfig, withdraw

    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in EVENTS or str(registry) not in str(arguments[0]):
            return
        if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    opened = Registry.open(registry)
    sys.addaudithook(hook)
    withdraw(opened, WithdrawConfig(subject=subject))
    print(seen)


def look(registry: Path, subject: str) -> str:
    """``with`` or ``without`` the patient; what else is found is an error."""
    from data_registry import Registry
    from data_registry.cohorts import load

    opened = Registry.open(registry)
    rows = opened.volumes()
    for row in rows:
        opened.read(row)  # with its checksum of today
    held = [row for row in rows if row.subject_id == subject]
    others = [row for row in rows if row.subject_id != subject]
    assert len(others) == 6, len(others)
    assert len(held) in (0, 2), len(held)
    assert load(opened, "all").num_volumes in (3, 4)
    members = opened.sql("SELECT volume_id FROM cohort_members")["volume_id"].to_pylist()
    assert set(members) <= {row.volume_id for row in rows}, "a cohort holds what is gone"
    return "with" if held else "without"


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """All that is in a folder: names, bytes of files, and what Parquet and HDF5 hold packed."""
    import h5py
    import hdf5plugin  # noqa: F401
    import pyarrow.parquet

    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        yield name, name.encode()
        if not path.is_file():
            continue
        yield name, path.read_bytes()
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
            yield name, json.dumps(table.to_pylist(), default=str).encode()
            yield name, str(table.schema.metadata).encode()
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                for dataset in file.values():
                    yield name, dataset[:].tobytes()
                    yield name, str(dict(dataset.attrs)).encode()


def search(folder: Path, needles: dict[str, bytes]) -> list[str]:
    """Which needles are found, and where."""
    return [
        f"{what} in {name}"
        for name, content in contents(folder)
        for what, needle in needles.items()
        if needle in content
    ]


def needles_of(registry: Path, subject: str) -> dict[str, bytes]:
    """Windows of the patient's raw and stored bytes that no other patient has, ids, names."""
    from data_registry import Registry

    opened = Registry.open(registry)
    found = {"pseudonym": subject.encode()}
    rows = opened.volumes("subject_id = ?", [subject])
    for number, row in enumerate(rows):
        for name in ("volume_id", "series_id", "study_id", "pixel_hash", "dataset"):
            if value := getattr(row, name):
                found[f"{name} {number}"] = value.encode()
        if row.role == "label":
            continue  # the same zeros as everybody's
        raw = opened.shards.read(row.shard, row.dataset).tobytes()
        middle = len(raw) // 2
        found |= {f"raw {number} at {at}": raw[at : at + 48] for at in (middle, middle + 640)}
        slices = opened.sql("SELECT byte_start, num_bytes FROM slices WHERE volume_id = ?",
                            [row.volume_id])  # fmt: skip
        shard = (registry / "shards" / row.shard).read_bytes()
        for index, (start, length) in enumerate(
            zip(*(c.to_pylist() for c in slices.columns), strict=True)
        ):
            at = start + length // 2
            found[f"stored {number} slice {index}"] = shard[at : at + 48]
    return found


def run(moments: int, seed: int) -> tuple[int, list[str]]:
    """Kill at some moments (0: at all).

    Returns:
        How many kills there were, and what went wrong.
    """
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subject = make_registry(folder)
        needles = needles_of(folder / "reg", subject)
        whole = search(folder / "reg", needles)
        missing = [what for what in needles if not any(what in line for line in whole)]
        if missing:
            raise RuntimeError(f"not found before: {missing}")

        def start(registry: Path, moment: int) -> subprocess.CompletedProcess[str]:
            words = ["--registry", str(registry), "--subject", subject, "--moment", str(moment)]
            return subprocess.run(
                [sys.executable, __file__, *words], capture_output=True, text=True, check=False
            )

        undisturbed = Path(shutil.copytree(folder / "reg", folder / "whole"))
        total = int(start(undisturbed, 0).stdout)
        chosen = list(range(1, total + 1))
        if moments:
            chosen = sorted(random.Random(seed).sample(chosen, moments))
        for moment in chosen:
            killed = Path(shutil.copytree(folder / "reg", folder / f"killed{moment}"))
            if start(killed, moment).returncode != -signal.SIGKILL:
                wrong.append(f"{moment}: not killed")
            try:
                look(killed, subject)
            except (AssertionError, CoreMRIError) as error:
                wrong.append(f"{moment}: after the kill {error!r}")
            again = start(killed, 0)
            if again.returncode:
                wrong.append(f"{moment}: second run: {again.stderr[-500:]}")
            elif look(killed, subject) != "without":
                wrong.append(f"{moment}: the patient is still there")
            wrong += [f"{moment}: {line}" for line in search(killed, needles)]
            shutil.rmtree(killed)
    return len(chosen), wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--registry", type=Path)
    parser.add_argument("--subject", default="")
    parser.add_argument("--moment", type=int, default=0)
    options = parser.parse_args()
    if options.registry:
        withdraw_until(options.registry, options.subject, options.moment)
        return 0
    kills, wrong = run(options.moments, options.seed)
    print(f"{kills} kills; wrong: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
