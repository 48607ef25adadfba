from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from core_mri.errors import ConfigError, CoreMRIError, DataError
from data_registry import Registry
from data_registry.commits import sole_writer
from data_registry.shards import PARTIAL


def code_of(action) -> str:
    with pytest.raises(CoreMRIError) as caught:
        action()
    return caught.value.code


def ids(registry: Path) -> set[str]:
    return {row.volume_id for row in Registry.open(registry).volumes()}


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


class TestOnceOnly:
    def test_running_again_adds_and_reads_nothing(
        self, scans: Path, tmp_path: Path, run_ingest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = run_ingest(tmp_path / "reg", scans)
        assert (first.volumes_added, first.slices_added, first.files) == (14, 56, 17)
        before = everything(tmp_path / "reg")
        for name in ("core_mri.files.nifti.read_nifti", "core_mri.files.dicom.group_series"):
            monkeypatch.setattr(name, lambda *_, **__: pytest.fail("a known file was read"))
        again = run_ingest(tmp_path / "reg", scans)
        assert (again.volumes_added, again.files_known) == (0, 17)
        assert everything(tmp_path / "reg") == before

    def test_moved_folder_adds_nothing(
        self, registry: Registry, scans: Path, tmp_path: Path, run_ingest
    ) -> None:
        shutil.copytree(registry.path, tmp_path / "reg")
        shutil.copytree(scans, tmp_path / "moved")
        report = run_ingest(tmp_path / "reg", tmp_path / "moved")
        assert (report.volumes_added, report.volumes_known) == (0, 14)
        assert ids(tmp_path / "reg") == ids(registry.path)
        shards = {row.shard for row in Registry.open(tmp_path / "reg").volumes()}
        assert {path.name for path in (tmp_path / "reg" / "shards").iterdir()} == shards

    def test_copies_in_one_input_count_once(
        self, registry: Registry, scans: Path, tmp_path: Path, run_ingest
    ) -> None:
        """Also the copied DICOM series, whose slices must not be interleaved."""
        shutil.copytree(scans, tmp_path / "in" / "one")
        shutil.copytree(scans, tmp_path / "in" / "two")
        report = run_ingest(tmp_path / "reg", tmp_path / "in" / "one", tmp_path / "in" / "two")
        assert (report.volumes_added, report.volumes_known) == (14, 14)
        assert ids(tmp_path / "reg") == ids(registry.path)

    def test_same_voxels_of_another_patient_are_reported(
        self, tmp_path: Path, run_ingest, save
    ) -> None:
        for patient in ("patient1", "patient2"):
            save(tmp_path / "in" / patient / "t1.nii.gz", "knee", 0)
        report = run_ingest(tmp_path / "reg", tmp_path / "in")
        assert (report.volumes_added, report.possible_duplicates) == (2, 1)

    def test_changed_file_replaces_its_volume(self, tmp_path: Path, run_ingest, save) -> None:
        path = tmp_path / "in" / "patient1" / "t1.nii.gz"
        save(path, "knee", 0)
        run_ingest(tmp_path / "reg", tmp_path / "in")
        old = ids(tmp_path / "reg")
        save(path, "knee", 1)
        os.utime(path, ns=(1, 1))
        report = run_ingest(tmp_path / "reg", tmp_path / "in")
        assert (report.volumes_added, report.volumes_retired) == (1, 1)
        assert not ids(tmp_path / "reg") & old
        save(path, "knee", 0)
        os.utime(path, ns=(2, 2))
        run_ingest(tmp_path / "reg", tmp_path / "in")
        assert ids(tmp_path / "reg") == old
        assert Registry.open(tmp_path / "reg").stats()["slices"] == 4

    def test_touched_file_stays(self, tmp_path: Path, run_ingest, save) -> None:
        path = tmp_path / "in" / "patient1" / "t1.nii.gz"
        save(path, "knee", 0)
        run_ingest(tmp_path / "reg", tmp_path / "in")
        os.utime(path, ns=(1, 1))
        report = run_ingest(tmp_path / "reg", tmp_path / "in")
        assert (report.volumes_known, report.volumes_retired) == (1, 0)
        assert len(ids(tmp_path / "reg")) == 1

    def test_series_that_arrived_in_two_parts(
        self, scans: Path, tmp_path: Path, run_ingest
    ) -> None:
        files = sorted((scans / "dicom").iterdir())
        (tmp_path / "in").mkdir()
        for file in files[:3]:
            shutil.copy2(file, tmp_path / "in")
        run_ingest(tmp_path / "reg", tmp_path / "in")
        shutil.copy2(files[3], tmp_path / "in")
        report = run_ingest(tmp_path / "reg", tmp_path / "in")
        assert (report.volumes_added, report.volumes_retired) == (1, 1)
        (row,) = Registry.open(tmp_path / "reg").volumes()
        assert row.num_slices == 4


class TestWorkers:
    def test_same_volumes_from_two_processes(
        self, registry: Registry, scans: Path, tmp_path: Path, run_ingest
    ) -> None:
        run_ingest(tmp_path / "reg", scans, jobs=2)
        ours, theirs = ({row.volume_id: row for row in r.volumes()}
                        for r in (Registry.open(tmp_path / "reg"), registry))  # fmt: skip
        assert ours.keys() == theirs.keys()
        for volume_id, row in ours.items():
            assert row.split == theirs[volume_id].split
            np.testing.assert_array_equal(
                Registry.open(tmp_path / "reg").read(row).array,
                registry.read(theirs[volume_id]).array,
            )


KILL = """
import os, signal, sys
from pathlib import Path
import data_registry.commits, data_registry.committer, data_registry.shards
from data_registry import IngestConfig, Source, ingest

moment, registry, scans, key = sys.argv[1], *map(Path, sys.argv[2:])
calls = 0

def kill_at_second(function, when=lambda *a: True):
    def wrapped(*args):
        global calls
        calls += bool(when(*args))
        if calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    return wrapped

if moment == "inside a shard":
    writer = data_registry.shards.ShardWriter
    writer.add = kill_at_second(writer.add)
elif moment == "before the commit":
    data_registry.committer.commit = kill_at_second(data_registry.committer.commit)
elif moment == "inside the commit":
    data_registry.commits.fsync = kill_at_second(
        data_registry.commits.fsync, lambda path: path.name.startswith(".partial-")
    )
source = Source(name="phantoms", licence="CC0-1.0", root=str(scans), role="by-name")
ingest(IngestConfig(registry=registry, sources=(source,), key_file=key, jobs=1))
"""


class TestKilled:
    @pytest.mark.parametrize("moment", ["inside a shard", "before the commit", "inside the commit"])
    def test_next_run_completes_it(
        self, moment: str, registry: Registry, scans: Path, key_file: Path, tmp_path: Path,
        run_ingest,
    ) -> None:  # fmt: skip
        path = tmp_path / "reg"
        done = subprocess.run([sys.executable, "-c", KILL, moment, path, scans, key_file])
        assert done.returncode == -signal.SIGKILL
        partial = ids(path)
        assert partial < ids(registry.path)
        left = [p.name for p in path.rglob("*") if p.name.startswith(PARTIAL)]
        used = {row.shard for row in Registry.open(path).volumes()}
        assert left or {p.name for p in (path / "shards").iterdir()} - used
        report = run_ingest(path, scans)
        assert report.volumes_added == 14 - len(partial)
        assert ids(path) == ids(registry.path)
        assert not [p for p in path.rglob("*") if p.name.startswith(PARTIAL)]
        used = {row.shard for row in Registry.open(path).volumes()}
        assert {p.name for p in (path / "shards").iterdir()} == used

    @pytest.mark.slow
    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
    def test_workers_end_with_their_parent(
        self, registry: Registry, scans: Path, key_file: Path, tmp_path: Path, run_ingest
    ) -> None:
        code = KILL.replace("jobs=1", "jobs=2")
        process = subprocess.Popen(
            [sys.executable, "-c", code, "never", tmp_path / "reg", scans, key_file],
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while not list((tmp_path / "reg").glob("shards/*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
        while _session(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _session(process.pid) == []
        run_ingest(tmp_path / "reg", scans)
        assert ids(tmp_path / "reg") == ids(registry.path)


def _session(session: int) -> list[int]:
    """Living processes of a session (field 6 of /proc/PID/stat; Z is a zombie)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


class TestFullDisk:
    @pytest.mark.parametrize("moment", ["shard", "commit"])
    def test_nothing_is_lost(
        self, moment: str, registry: Registry, scans: Path, tmp_path: Path, run_ingest,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        path = tmp_path / "reg"
        real_write = os.pwrite

        def full() -> None:
            if len(list(path.glob("commits/0*"))) == 1:
                raise OSError(28, "No space left on device")

        def pwrite(descriptor: int, data: bytes, position: int) -> int:
            full()
            return real_write(descriptor, data, position)

        def write_table(*_: object, **__: object) -> None:
            full()
            real_write_table(*_, **__)

        import pyarrow.parquet

        real_write_table = pyarrow.parquet.write_table
        with monkeypatch.context() as patch:
            if moment == "shard":
                patch.setattr(os, "pwrite", pwrite)
            else:
                patch.setattr(pyarrow.parquet, "write_table", write_table)
            assert code_of(lambda: run_ingest(path, scans)) == "DATA-07"
        kept = ids(path)
        assert 0 < len(kept) < 14
        used = {row.shard for row in Registry.open(path).volumes()}
        assert {p.name for p in (path / "shards").iterdir()} == used
        run_ingest(path, scans)
        assert ids(path) == ids(registry.path)


class TestRefused:
    def test_other_folder(self, scans: Path, tmp_path: Path, run_ingest) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        assert code_of(lambda: run_ingest(tmp_path, scans)) == "CONFIG-03"
        assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]

    def test_while_another_writes(self, registry: Registry, scans: Path, run_ingest) -> None:
        with sole_writer(registry):
            assert code_of(lambda: run_ingest(registry.path, scans)) == "DATA-08"

    def test_other_key(self, registry: Registry, scans: Path, tmp_path: Path, run_ingest) -> None:
        other = tmp_path / "other.key"
        other.write_text("ab" * 32)
        other.chmod(0o600)
        assert code_of(lambda: run_ingest(registry.path, scans, key_file=other)) == "CONFIG-05"
        gone = tmp_path / "gone.key"
        assert code_of(lambda: run_ingest(registry.path, scans, key_file=gone)) == "CONFIG-02"
        assert not gone.exists()

    def test_missing_and_empty_input(self, tmp_path: Path, run_ingest) -> None:
        (tmp_path / "empty").mkdir()
        for name in ("none", "empty"):
            assert code_of(lambda n=name: run_ingest(tmp_path / "r", tmp_path / n)) == "DATA-01"

    def test_unknown_region(self, scans: Path, tmp_path: Path, run_ingest) -> None:
        with pytest.raises(ConfigError, match="brian"):
            run_ingest(tmp_path / "reg", scans, source={"region": "brian"})
        assert not (tmp_path / "reg").exists()

    @pytest.mark.parametrize("wrong", [{"jobs": -1}, {"max_frames": 0}, {"shard_mb": 0}])
    def test_wrong_numbers(self, wrong: dict[str, int], scans: Path, tmp_path: Path, run_ingest):
        assert code_of(lambda: run_ingest(tmp_path / "reg", scans, **wrong)) == "CONFIG-01"


@pytest.fixture(scope="module")
def bad_files(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind that cannot be stored, by the code it must get."""
    import gzip

    import nibabel
    import pydicom

    folder = tmp_path_factory.mktemp("bad")
    image = np.random.default_rng(0).random((8, 8, 4)).astype(np.float32)

    def nifti(name: str, array: np.ndarray, zooms: tuple[float, ...] = (1, 1, 2)) -> Path:
        path = folder / name
        affine = np.diag([*zooms, 1.0])
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        return path

    files = {"DATA-04": nifti("nan.nii.gz", np.where(image > 0.99, np.nan, image))}
    files["DATA-05"] = nifti("constant.nii.gz", np.full((8, 8, 4), 7, dtype=np.int16))
    broken = nifti("spacing.nii", image)
    header = bytearray(broken.read_bytes())
    header[76 + 4 : 76 + 16] = np.zeros(3, dtype="<f4").tobytes()  # pixdim[1:4]
    header[252:256] = np.array([1, 0], dtype="<i2").tobytes()  # qform 1, sform 0
    broken.write_bytes(bytes(header))
    files["GEOMETRY-01"] = broken
    whole = gzip.compress(nifti("whole.nii", image).read_bytes())
    (folder / "whole.nii").unlink()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    files["DATA-02"] = folder / "cut.nii.gz"
    dicom = next(iter(sorted((scans / "dicom").iterdir())))
    (folder / "cut.dcm").write_bytes(dicom.read_bytes()[:-500])
    files["DATA-02 DICOM"] = folder / "cut.dcm"
    (folder / "letter.txt").write_text("Dear colleague")
    files["DATA-03"] = folder / "letter.txt"
    (folder / "empty.dcm").touch()
    files["DATA-02 empty"] = folder / "empty.dcm"
    dataset = pydicom.dcmread(dicom)
    del dataset.PixelData
    dataset.SeriesInstanceUID = "1.2.3.4"
    dataset.save_as(folder / "report.dcm")
    files["DATA-10"] = folder / "report.dcm"
    return files


class TestQuarantine:
    KINDS = (
        "DATA-02", "DATA-02 DICOM", "DATA-02 empty", "DATA-03", "DATA-04", "DATA-05", "DATA-10",
        "GEOMETRY-01",
    )  # fmt: skip

    @pytest.mark.parametrize("kind", KINDS)
    def test_alone_nothing_is_readable(
        self, kind: str, bad_files: dict[str, Path], tmp_path: Path, run_ingest
    ) -> None:
        code = kind.split()[0]
        with pytest.raises(DataError, match=code) as caught:
            run_ingest(tmp_path / "reg", bad_files[kind])
        assert caught.value.code == "DATA-01"
        assert bad_files[kind].name not in str(caught.value)
        (reason,) = Registry.open(tmp_path / "reg").stats()["quarantined"]
        assert reason.startswith(code)
        with pytest.raises(DataError, match=code):  # known by now, and still not readable
            run_ingest(tmp_path / "reg", bad_files[kind])

    def test_among_others_it_is_counted(
        self, bad_files: dict[str, Path], scans: Path, tmp_path: Path, run_ingest
    ) -> None:
        bad = next(iter(bad_files.values())).parent
        report = run_ingest(tmp_path / "reg", scans, bad)
        counts = {reason.split()[0]: n for reason, n in report.quarantined.items()}
        assert counts == {
            "DATA-02": 3, "DATA-03": 1, "DATA-04": 1, "DATA-05": 1, "DATA-10": 1, "GEOMETRY-01": 1,
        }  # fmt: skip
        assert report.volumes_added == 14
        stats = Registry.open(tmp_path / "reg").stats()
        assert stats["quarantined"] == report.quarantined
        again = run_ingest(tmp_path / "reg", scans, bad)
        assert again.quarantined == report.quarantined
        retried = run_ingest(tmp_path / "reg", scans, bad, retry=True)
        assert retried.quarantined == report.quarantined
        assert Registry.open(tmp_path / "reg").stats() == stats

    def test_repaired_file_leaves_it(
        self, bad_files: dict[str, Path], tmp_path: Path, run_ingest, save
    ) -> None:
        path = tmp_path / "in" / "patient1.nii.gz"
        path.parent.mkdir()
        shutil.copy(bad_files["DATA-02"], path)
        assert code_of(lambda: run_ingest(tmp_path / "reg", tmp_path / "in")) == "DATA-01"
        save(path, "knee", 0)
        run_ingest(tmp_path / "reg", tmp_path / "in")
        stats = Registry.open(tmp_path / "reg").stats()
        assert (stats["volumes"], stats["quarantined"]) == (1, {})

    def test_scan_that_kills_its_reader(
        self, scans: Path, tmp_path: Path, run_ingest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the pool reports as None, see test_worker_pool.py."""
        from data_registry.worker_pool import WorkerPool

        each = WorkerPool.each

        def deadly(self, function, tasks, parts=lambda task: [task]):
            for task, result in each(self, function, tasks, parts):
                if function.__name__ == "read_batch" and result.units[0].unit.kind == "dicom":
                    yield from ((part, None) for part in parts(task))
                else:
                    yield task, result

        monkeypatch.setattr(WorkerPool, "each", deadly)
        report = run_ingest(tmp_path / "reg", scans)
        assert set(report.quarantined) == {"RUN-02 a worker process failed"}
        assert 0 < report.volumes_added < 14

    def test_label_outside_the_list(self, tmp_path: Path, run_ingest, save) -> None:
        save(tmp_path / "in" / "patient1_mask.nii.gz", "knee", 0, label=True)
        save(tmp_path / "in" / "patient1_t1.nii.gz", "knee", 0)
        report = run_ingest(tmp_path / "reg", tmp_path / "in", source={"label_values": {1: "skin"}})
        assert [reason.split()[0] for reason in report.quarantined] == ["DATA-06"]
        assert report.volumes_added == 1


class TestPrivacy:
    def test_no_identifier_in_the_registry(self, registry: Registry, scans: Path) -> None:
        (row,) = registry.volumes("region = 'prostate'")
        assert json.loads(row.facts)["EchoTime"] == 101.0
        assert row.vendor == "siemens"
        assert row.field_strength_t == 3.0
        catalogue = registry.sql("SELECT * FROM volumes").to_pylist()
        catalogue += registry.sql("SELECT * FROM files").to_pylist()
        text = repr(catalogue).encode()
        for content in (*everything(registry.path).values(), text):
            for word in (b"Example", b"patient0", b"HOSPITAL", str(scans).encode()):
                assert word not in content

    def test_paths_are_in_the_private_log_only(
        self, scans: Path, bad_files: dict[str, Path], tmp_path: Path, run_ingest,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        log = tmp_path / "private.jsonl"
        bad = bad_files["DATA-03"]
        with caplog.at_level("DEBUG", logger="data_registry"):
            run_ingest(tmp_path / "reg", scans, bad, private_log=log)
        assert log.stat().st_mode & 0o777 == 0o600
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert len(lines) == 18
        (failed,) = [line for line in lines if line["code"]]
        assert failed["path"] == str(bad)
        assert failed["unit"] in caplog.text
        assert bad.name not in caplog.text

    def test_a_key_is_made_and_announced_once(
        self, scans: Path, tmp_path: Path, run_ingest, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(2):
            run_ingest(tmp_path / "reg", scans / "patient00", key_file=None)
        assert (tmp_path / "reg.key").stat().st_mode & 0o777 == 0o600
        assert caplog.text.count("reg.key") == 1


class TestValues:
    def ingest_array(self, array: np.ndarray, tmp_path: Path, run_ingest) -> list[np.ndarray]:
        import nibabel

        (tmp_path / "in").mkdir()
        image = nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0]))
        nibabel.save(image, tmp_path / "in" / "patient1.nii.gz")
        run_ingest(tmp_path / "reg", tmp_path / "in", max_frames=3)
        registry = Registry.open(tmp_path / "reg")
        rows = sorted(registry.volumes(), key=lambda row: row.dataset[-5:])
        self.rows = rows
        return [registry.read(row).reorient("RAS").array for row in rows]

    @pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
    def test_type_and_values_are_kept(self, dtype: str, tmp_path: Path, run_ingest) -> None:
        array = (np.random.default_rng(0).random((6, 5, 4)) * 200).astype(dtype)
        (stored,) = self.ingest_array(array, tmp_path, run_ingest)
        assert stored.dtype == array.dtype
        np.testing.assert_array_equal(stored, array)

    def test_double_becomes_single(self, tmp_path: Path, run_ingest) -> None:
        array = np.random.default_rng(0).random((6, 5, 4))
        (stored,) = self.ingest_array(array, tmp_path, run_ingest)
        np.testing.assert_array_equal(stored, array.astype(np.float32))

    def test_complex_is_refused(self, tmp_path: Path, run_ingest) -> None:
        array = np.random.default_rng(0).random((6, 5, 4)).astype(np.complex64)
        assert code_of(lambda: self.ingest_array(array, tmp_path, run_ingest)) == "DATA-01"

    def test_frames_of_a_4d_file(self, tmp_path: Path, run_ingest) -> None:
        """Three of seven, evenly spread, each a volume of its own."""
        array = np.random.default_rng(0).integers(0, 99, (6, 5, 4, 7)).astype(np.int16)
        stored = self.ingest_array(array, tmp_path, run_ingest)
        assert [row.dataset[-6:] for row in self.rows] == ["-f0000", "-f0003", "-f0006"]
        assert len({row.subject_id for row in self.rows}) == 1
        for frame, voxels in zip((0, 3, 6), stored, strict=True):
            np.testing.assert_array_equal(voxels, array[..., frame])

    def test_label_names_are_kept(self, tmp_path: Path, run_ingest, save) -> None:
        save(tmp_path / "in" / "patient1_mask.nii.gz", "knee", 0, label=True)
        names = {i: f"part {i}" for i in range(1, 20)}
        run_ingest(tmp_path / "reg", tmp_path / "in", source={"label_values": names})
        (row,) = Registry.open(tmp_path / "reg").volumes()
        assert json.loads(row.facts)["LabelNames"].startswith("1=part 1;2=part 2")


class TestNothingIsSilent:
    def test_files_that_no_entry_takes_are_counted(
        self, scans: Path, tmp_path: Path, run_ingest
    ) -> None:
        folder = tmp_path / "in"
        shutil.copytree(scans / "patient00", folder)
        for name in (".hidden", "DICOMDIR", "side.json", "notes.txt", "name.Doe"):
            (folder / name).write_text("x")
        log = tmp_path / "private.log"
        source = {"include": ("*.nii.gz",)}
        report = run_ingest(tmp_path / "reg", folder, source=source, private_log=log)
        assert report.left_out == {"hidden": 1, "DICOMDIR": 1, ".json": 1, ".txt": 1, "other": 1}
        assert "name.Doe" in log.read_text()

    def test_a_series_uid_of_two_patients_is_reported(self, tmp_path: Path, run_ingest) -> None:
        import pydicom

        from core_mri.files.dicom_write import write_dicom_series
        from core_mri.physics.phantoms import phantom_volume

        for k in range(2):
            image, _ = phantom_volume("knee", k, "T1", size=32, num_slices=3)
            facts = {"Modality": "MR", "PatientID": f"P{k}"}
            for file in write_dicom_series(
                image, tmp_path / "in" / str(k), facts=facts, seed=str(k)
            ):
                header = pydicom.dcmread(file)
                header.SeriesInstanceUID = "1.2.3"
                header.save_as(file)
        report = run_ingest(tmp_path / "reg", tmp_path / "in")
        assert (report.shared_series, report.volumes_added) == (1, 2)
        rows = Registry.open(tmp_path / "reg").volumes()
        assert len({row.subject_id for row in rows}) == 2

    def test_voxels_beside_their_header_are_one_unit(
        self, scans: Path, tmp_path: Path, run_ingest
    ) -> None:
        import nibabel

        image = nibabel.load(scans / "patient00" / "brain_T1.nii.gz")
        (tmp_path / "in").mkdir()
        pair = nibabel.Nifti1Pair(np.asanyarray(image.dataobj), image.affine)
        pair.to_filename(tmp_path / "in" / "a.hdr")
        report = run_ingest(tmp_path / "reg", tmp_path / "in")
        assert (report.files, report.volumes_added, report.quarantined) == (2, 1, {})
        os.utime(tmp_path / "in" / "a.img", ns=(1, 1))
        again = run_ingest(tmp_path / "reg", tmp_path / "in")
        assert (again.volumes_known, again.volumes_added, again.quarantined) == (1, 0, {})

    @pytest.mark.parametrize("stack", [True, False])
    def test_pictures_with_declared_spacing(self, stack: bool, tmp_path: Path, run_ingest) -> None:
        from PIL import Image

        for name in ("images", "labels"):
            (tmp_path / "in" / name).mkdir(parents=True)
            for k in range(4):
                array = np.add.outer(np.arange(40), np.arange(30)).astype(np.uint8) + k
                array = array if name == "images" else (array > 40).astype(np.uint8)
                Image.fromarray(array).save(tmp_path / "in" / name / f"p1_{k}.png")
        source = {"spacing_mm": (0.5, 0.5, 3.0), "stack": stack, "subject": "(?P<subject>p1)"}
        run_ingest(tmp_path / "reg", tmp_path / "in", source=source)
        registry = Registry.open(tmp_path / "reg")
        images = registry.volumes("role = 'image'")
        assert [row.num_slices for row in images] == ([4] if stack else [1] * 4)
        assert sorted(images[0].spacing_mm) == [0.5, 0.5, 3.0]
        for image in images:
            (label,) = registry.labels_of(image)
            assert registry.images_of(label) == [image]
        report = run_ingest(tmp_path / "reg", tmp_path / "in", source=source)
        assert (report.volumes_added, report.files_known) == (0, 8)


@pytest.mark.data
@pytest.mark.usefixtures("shared_data")
class TestRealScans:
    @pytest.mark.slow
    def test_source_list_of_the_shared_data(self, key_file: Path, tmp_path: Path) -> None:
        from data_registry import IngestConfig, ingest, load_sources

        config = IngestConfig(
            registry=tmp_path / "reg", sources=load_sources("core_mri_data"), key_file=key_file
        )
        report = ingest(config)
        registry = Registry.open(config.registry)
        stats = registry.stats()
        assert stats["by_source"]["msd_hippocampus"] == 80
        assert stats["by_source"]["sunnybrook"] == 412
        assert (stats["kspace"], stats["volumes"]) == (2, 531)
        codes = {reason.split()[0]: n for reason, n in report.quarantined.items()}
        # Truncated; all zero; headers with random pixels; without geometry; without thickness.
        assert codes == {
            "DATA-02": 1, "DATA-05": 1, "DATA-12": 3, "GEOMETRY-01": 1, "GEOMETRY-02": 2
        }  # fmt: skip
        # Nothing but texts and a picture of the set is left out.
        assert sum(report.left_out.values()) == 11
        paired = {
            label.volume_id
            for image in registry.volumes("role = 'image'")
            for label in registry.labels_of(image)
        }
        alone = "role = 'label' AND source <> 'synthseg'"  # label maps without a scan
        assert paired == {row.volume_id for row in registry.volumes(alone)}
        for image in registry.volumes("source = 'sunnybrook' AND role = 'image'"):
            assert len(registry.labels_of(image)) == 1
