"""SIGKILL an ingest at random moments, run it again, and compare with one that was never killed.

    python tests/data_registry/kill_ingest.py --moments 50 --seed 0

Each moment starts from an empty registry. Half of the kills hit the main process alone, so that its
workers must end by themselves, half the whole process group. Compared are all tables of the
catalogue (but for shard names, byte positions and commit numbers, which say where and when, not
what), the voxels themselves, and that no file without owner is left.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

INGEST = """
import sys
from pathlib import Path
from data_registry import IngestConfig, Source, ingest

if __name__ == "__main__":
    scans, registry, key = map(Path, sys.argv[1:])
    source = {"licence": "CC0-1.0", "role": "by-name"}
    ingest(IngestConfig(
        registry=registry, key_file=key, jobs=2, shard_mb=1,
        sources=(Source(name="a", root=str(scans / "a"), **source),
                 Source(name="b", root=str(scans / "b"), **source)),
    ))
"""


MARKS = ("registry.json", "shards")
"""What appears when an ingest begins, and when the first scan is stored; kills come after."""


def make_scans(folder: Path) -> None:
    """Patients as NIfTI with labels, DICOM and raw data; copies; files that end in quarantine."""
    from core_mri.files.dicom_write import write_dicom_series
    from core_mri.files.nifti import write_nifti
    from core_mri.physics.phantoms import phantom_volume

    for subject in range(12):
        image, label = phantom_volume("brain", subject, "T1", size=64, num_slices=8)
        patient = folder / "a" / f"patient{subject:02d}"
        patient.mkdir(parents=True)
        write_nifti(image, patient / "t1.nii.gz")
        write_nifti(label, patient / "mask.nii.gz")
        facts = {"Modality": "MR", "PatientID": f"ID-{subject}", "SeriesDescription": "t2 knee"}
        knee, _ = phantom_volume("knee", subject, "T2", size=48, num_slices=6)
        write_dicom_series(knee, folder / "b" / f"series{subject}", facts=facts, seed=str(subject))
    shutil.copytree(folder / "b" / "series3", folder / "b" / "copy of series3")
    shutil.copytree(folder / "a" / "patient04", folder / "b" / "patient04")
    (folder / "a" / "broken.nii.gz").write_bytes((patient / "t1.nii.gz").read_bytes()[:2000])
    (folder / "b" / "notes.txt").write_text("not a scan")
    write_raw(folder / "b" / "patient20" / "raw.h5")


def write_raw(path: Path) -> None:
    """Raw data of 4 slices in fastMRI's layout."""
    import h5py

    rng = np.random.default_rng(0)
    samples = rng.standard_normal((4, 3, 48, 40, 2)).astype(np.float32).view(np.complex64)[..., 0]
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["kspace"] = samples
        file.attrs["acquisition"] = "AXT2"


def fingerprint(path: Path) -> dict[str, str]:
    """A hash of each table and of all voxels."""
    from data_registry import Registry

    registry = Registry.open(path)
    tables = {
        "volumes": "SELECT * EXCLUDE (shard, commit) FROM volumes ORDER BY volume_id",
        "slices": 'SELECT volume_id, "index", foreground FROM slices ORDER BY ALL',
        "files": "SELECT * EXCLUDE (commit) FROM files ORDER BY ALL",
        "splits": "SELECT subject_id, split FROM splits ORDER BY ALL",
    }
    found = {}
    for name, query in tables.items():
        rows = "\n".join(map(str, registry.sql(query).to_pylist()))
        found[name] = hashlib.sha256(rows.encode()).hexdigest()
    voxels = hashlib.sha256()
    for row in registry.volumes():
        voxels.update(row.volume_id.encode())
        voxels.update(registry.shards.read(row.shard, row.dataset).tobytes())
    found["voxels"] = voxels.hexdigest()
    used = {row.shard for row in registry.volumes()}
    loose = [p.name for p in (path / "shards").iterdir() if p.name not in used]
    found["loose files"] = f"{len(loose)}"
    return found


def kill_and_repair(
    scans: Path, folder: Path, key: Path, moments: int, seed: int
) -> tuple[dict[str, str], list[dict[str, str]], list[int]]:
    """Fingerprints: undisturbed, and after each kill and a second run; commits at each kill."""
    script = folder / "ingest.py"
    script.write_text(INGEST)

    def start(registry: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(script), str(scans), str(registry), str(key)]
        return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)

    def wait_for(mark: Path, process: subprocess.Popen[bytes]) -> float:
        while not mark.exists() and process.poll() is None:
            time.sleep(0.002)
        return time.monotonic()

    # Seconds from each mark (nothing happens while Python imports) to the end.
    process = start(folder / "whole")
    begun = {name: wait_for(folder / "whole" / name, process) for name in MARKS}
    if process.wait():
        raise RuntimeError("the undisturbed ingest failed")
    left = {name: time.monotonic() - begun[name] for name in MARKS}
    expected = fingerprint(folder / "whole")
    rng = random.Random(seed)
    found, commits = [], []
    for moment in range(moments):
        registry = folder / f"killed{moment}"
        process = start(registry)
        mark = MARKS[0] if moment % 5 == 0 else MARKS[1]
        wait_for(registry / mark, process)
        time.sleep(rng.uniform(0, left[mark]))
        if moment % 2:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        commits.append(len([c for c in registry.glob("commits/*") if c.name[0] != "."]))
        if start(registry).wait():
            raise RuntimeError(f"the second run after kill {moment} failed")
        found.append(fingerprint(registry))
        shutil.rmtree(registry)
    return expected, found, commits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key = folder / "project.key"
        key.write_text("c0" * 32)
        key.chmod(0o600)
        make_scans(folder / "scans")
        expected, found, commits = kill_and_repair(
            folder / "scans", folder, key, options.moments, options.seed
        )
    wrong = [i for i, other in enumerate(found) if other != expected]
    print(f"commits on disk at the kills: {sorted(commits)}")
    print(f"{len(found) - len(wrong)} of {len(found)} registries identical; different: {wrong}")
    for moment in wrong:
        print(moment, [part for part in expected if found[moment][part] != expected[part]])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
