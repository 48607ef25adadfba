"""Withdrawal: nothing of the patient is left, the rest is as it was, and the patient is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core_mri.__main__ import main
from core_mri.errors import ConfigError, DataError
from data_registry import Registry, SliceDataset
from data_registry.cohorts import compare, condition, freeze, load
from data_registry.commits import sole_writer
from data_registry.dedupe import dedupe
from data_registry.deidentify.identifiers import pseudonym
from data_registry.export import ExportConfig, export
from data_registry.governance.audit_log import verify
from data_registry.governance.uses import mark, record_use, uses_of
from data_registry.governance.withdrawal import WithdrawConfig, WithdrawReport, withdraw
from data_registry.governance.withdrawals import LEDGER, PENDING
from data_registry.repair import repair
from tests.data_registry.conftest import KEY
from tests.data_registry.kill_ingest import write_raw
from tests.data_registry.kill_withdraw import needles_of, search
from tests.data_registry.test_migrations import as_schema_1

Take = Callable[..., WithdrawReport]


def pseudonym_of(raw: str, namespace: str = "phantoms") -> str:
    return pseudonym(bytes.fromhex(KEY), "subject", namespace, raw)


def take(path: Path, subject: str, **options: object) -> WithdrawReport:
    config = WithdrawConfig(subject=subject, **options)  # type: ignore[arg-type]
    return withdraw(Registry.open(path), config)


def state(path: Path, without: str) -> dict[str, object]:
    """All that other patients have: rows but for where they lie, voxels, slices."""
    registry = Registry.open(path)
    rows = [row for row in registry.volumes() if row.subject_id != without]
    stored = {row.volume_id: registry.shards.read(row.shard, row.dataset).tobytes() for row in rows}
    where = "WHERE volume_id IN (SELECT volume_id FROM volumes WHERE subject_id <> ?)"
    tables = {
        "slices": f'SELECT volume_id, "index", foreground, checksum, num_bytes FROM slices {where}',
        "splits": "SELECT subject_id, split FROM splits WHERE subject_id <> ?",
        "volumes": "SELECT * EXCLUDE (shard, commit) FROM volumes WHERE subject_id <> ?",
        "prints": f"SELECT * FROM fingerprints {where}",
    }
    found = {n: registry.sql(f"{q} ORDER BY ALL", [without]).to_pylist() for n, q in tables.items()}
    return {**found, "voxels": stored}


@pytest.fixture(scope="module")
def made(scans: Path, run_ingest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two commits of files, raw data and a broken file among them; cohorts, hashes of slices."""
    found = {}
    for codec in ("bitshuffle-lz4", "none"):
        folder = tmp_path_factory.mktemp("made")
        run_ingest(folder / "reg", scans, compression=codec)
        write_raw(folder / "raw" / "patient02" / "raw.h5")
        (folder / "raw" / "patient02" / "broken.nii.gz").write_bytes(b"\x1f\x8b broken")
        run_ingest(folder / "reg", folder / "raw", compression=codec)
        registry = Registry.open(folder / "reg")
        dedupe(registry)
        freeze(registry, "images", "role = 'image'")
        freeze(registry, "knees", "region = 'knee'")
        found[codec] = folder
    return found


@pytest.fixture
def path(made: dict[str, Path], tmp_path: Path) -> Path:
    """A registry to change."""
    shutil.copytree(made["bitshuffle-lz4"] / "raw", tmp_path / "raw")
    return Path(shutil.copytree(made["bitshuffle-lz4"] / "reg", tmp_path / "reg"))


class TestNothingIsLeft:
    @pytest.mark.parametrize("codec", ["bitshuffle-lz4", "none"])
    def test_every_byte_is_searched(
        self, made: dict[str, Path], codec: str, tmp_path: Path
    ) -> None:
        path = Path(shutil.copytree(made[codec] / "reg", tmp_path / "reg"))
        subject = pseudonym_of("patient02")
        freeze(Registry.open(path), "mine", f"subject_id = '{subject}' OR region = 'knee'")
        needles = needles_of(path, subject)
        needles |= {name: name.encode() for name in ("patient02", "brain_T1", "broken.nii")}
        before = search(path, needles)
        assert {line.split(" in ")[0] for line in before} >= set(needles_of(path, subject))
        others = state(path, subject)
        report = take(path, subject)
        assert (report.volumes, report.already) == (3, False)
        assert search(path, needles) == []
        assert state(path, subject) == others
        assert repair(Registry.open(path), dry_run=True).damaged == {}
        slices = SliceDataset(Registry.open(path), split=("train", "val", "test"), min_foreground=0)
        assert len([slices.read(i) for i in range(len(slices))]) == len(slices) > 0

    def test_retired_volumes_and_old_commits_too(
        self, path: Path, tmp_path: Path, run_ingest, save
    ) -> None:
        folder = tmp_path / "more"
        for number in (7, 8):
            save(folder / "patient02" / "knee_T1.nii.gz", "knee", number)
            save(folder / "patient03" / "knee_T1.nii.gz", "knee", number + 10)
            if number == 7:
                run_ingest(path, folder)
                needles = needles_of(path, pseudonym_of("patient02"))
        run_ingest(path, folder)
        assert search(path, needles)
        take(path, pseudonym_of("patient02"))
        assert search(path, needles) == []
        assert Registry.open(path).volumes("subject_id = ?", [pseudonym_of("patient03")])

    def test_files_put_into_the_folder(self, path: Path) -> None:
        subject = pseudonym_of("patient01")
        gone = {
            "cohorts/old.txt": subject.encode(),
            "list.csv": subject.encode(),
            f"out/sub-{subject}/readme.txt": b"nobody",
            "reports/page.html": b"<img src='data:image/png;base64,AAAA'>",
            "sheet.png": b"\x89PNG\r\n",
        }
        stay = {"notes.txt": b"nobody", "run/weights/model.safetensors": b"\xff\x00"}
        for name, content in (gone | stay).items():
            (path / name).parent.mkdir(exist_ok=True, parents=True)
            (path / name).write_bytes(content)
        assert take(path, subject).deleted == sorted(gone)
        assert all((path / name).is_file() for name in stay)
        assert not (path / "out").exists()
        assert search(path, {"pseudonym": subject.encode()}) == []

    def test_weights_in_the_folder_are_not_broken(self, path: Path) -> None:
        subject = pseudonym_of("patient01")
        folder = path / "run" / "weights"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"card": {"subjects": [subject]}}))
        with pytest.raises(ConfigError, match=r"CONFIG-05.*run/weights.*Move them out"):
            take(path, subject)
        assert (folder / "config.json").is_file()
        assert not (path / LEDGER).exists()

    def test_dry_run_changes_nothing(self, path: Path) -> None:
        def everything() -> dict[Path, bytes]:
            return {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}

        before = everything()
        report = take(path, pseudonym_of("patient02"), dry_run=True)
        assert (report.volumes, report.cohorts) == (3, ["images"])
        assert everything() == before


class TestCohorts:
    def test_say_that_they_changed(self, path: Path) -> None:
        registry = Registry.open(path)
        before = load(registry, "images")
        same = load(registry, "knees")
        report = take(path, pseudonym_of("patient02"))
        after = load(registry, "images")
        assert report.cohorts == ["images"]
        assert after.num_volumes == before.num_volumes - 1
        assert after.num_slices == before.num_slices - 4
        assert after.digest != before.digest
        (removal,) = after.removals
        assert (removal.volumes, removal.digest_before) == (1, before.digest)
        assert removal.when.endswith("Z")
        assert load(registry, "knees") == same
        assert len(registry.volumes(condition(registry, "images"))) == after.num_volumes
        change = compare(registry, after)
        assert (change.more, change.fewer, change.missing) == (0, 0, 0)

    def test_the_command_tells(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        take(path, pseudonym_of("patient02"))
        assert main(["data", "query", "--registry", str(path), "--name", "images"]) == 0
        assert "1 volumes were withdrawn" in capsys.readouterr().out
        assert main(["data", "query", "--registry", str(path), "--json"]) == 0


class TestRefused:
    def test_under_every_source_of_the_namespace(
        self, path: Path, scans: Path, tmp_path: Path, run_ingest, save
    ) -> None:
        subject = pseudonym_of("patient02")
        take(path, subject)
        report = run_ingest(path, scans)
        reason = "DATA-22 a patient who was withdrawn from the registry"
        assert report.quarantined == {reason: 2}
        save(tmp_path / "other" / "patient02" / "spine_T1.nii.gz", "spine", 3)
        source = {"name": "another", "subject_namespace": "phantoms"}
        with pytest.raises(DataError, match=r"none of 1 file.*DATA-22"):
            run_ingest(path, tmp_path / "other", source=source)
        assert not Registry.open(path).volumes("subject_id = ?", [subject])
        assert subject not in {row[0] for row in Registry.open(path).rows("FROM all_splits")}

    def test_raw_data_and_the_private_log_says_what_to_do(
        self, path: Path, tmp_path: Path, run_ingest
    ) -> None:
        take(path, pseudonym_of("patient02"))
        log = tmp_path / "private.jsonl"
        with pytest.raises(DataError, match="DATA-22"):
            run_ingest(path, tmp_path / "raw", private_log=log)
        said = [json.loads(line) for line in log.read_text().splitlines()]
        refused = [line for line in said if line["code"] == "DATA-22"]
        assert [Path(line["path"]).name for line in refused] == ["raw.h5"]
        assert "leave it out with `exclude`" in refused[0]["message"]

    def test_copies_that_the_registry_exported(
        self, path: Path, tmp_path: Path, run_ingest
    ) -> None:
        out = tmp_path / "out"
        export(ExportConfig(registry=path, out=out, format="nifti", where="region = 'brain'"))
        take(path, pseudonym_of("patient02"))
        source = {"name": "copies"}
        report = run_ingest(path, out, source=source)
        assert report.quarantined["DATA-22 a patient who was withdrawn from the registry"] == 2
        assert report.volumes_added == 5

    def test_after_a_migration(self, scans: Path, tmp_path: Path, run_ingest) -> None:
        path = tmp_path / "reg"
        run_ingest(path, scans)
        take(path, pseudonym_of("patient02"))
        for folder in (path / "commits").iterdir():  # merged commits came with schema 2
            folder.rename(folder.with_name("00000001"))
        as_schema_1(path)
        assert run_ingest(path, scans).quarantined == {
            "DATA-22 a patient who was withdrawn from the registry": 2
        }

    @pytest.mark.slow
    @pytest.mark.ray
    def test_with_ray(self, scans: Path, tmp_path: Path, run_ingest) -> None:
        path = tmp_path / "reg"
        run_ingest(path, scans)
        take(path, pseudonym_of("patient02"))
        report = run_ingest(path, scans, ray="local")
        assert sum(report.quarantined.values()) == 2
        assert not Registry.open(path).volumes("subject_id = ?", [pseudonym_of("patient02")])

    def test_the_ledger_is_all_that_knows(self, path: Path) -> None:
        subject = pseudonym_of("patient02")
        take(path, subject)
        (line,) = [json.loads(line) for line in (path / LEDGER).read_text().splitlines()]
        assert line["subject"] == mark(subject)
        assert set(line) == {"subject", "when", "withdrawal"}
        assert not (path / PENDING).exists()


class TestWhom:
    def test_by_the_id_in_the_files(self, path: Path, key_file: Path) -> None:
        options = {"source": "phantoms", "key_file": key_file}
        assert take(path, "patient02", **options).whom.subjects == {
            pseudonym_of("patient02"): ["phantoms"]
        }
        again = take(path, "patient02", **options)
        assert (again.already, again.volumes) == (True, 0)
        assert take(path, pseudonym_of("patient02")).already
        assert take(path, "HOSPITAL-4711", **options).volumes == 1

    def test_nobody_of_that_name(self, path: Path, key_file: Path) -> None:
        with pytest.raises(DataError, match=r"DATA-09.*--source NAME"):
            take(path, "patient02")
        with pytest.raises(DataError, match="DATA-09"):
            take(path, "patient99", source="phantoms", key_file=key_file)
        with pytest.raises(ConfigError, match=r"CONFIG-05.*no source 'x'.*phantoms"):
            take(path, "patient02", source="x", key_file=key_file)

    def test_another_key(self, path: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.key"
        other.write_text("d1" * 32)
        other.chmod(0o600)
        with pytest.raises(ConfigError, match=r"CONFIG-05.*not the one"):
            take(path, "patient02", source="phantoms", key_file=other)

    def test_the_reason_must_not_name_the_patient(self, path: Path, key_file: Path) -> None:
        with pytest.raises(ConfigError, match="CONFIG-01"):
            take(path, "patient02", source="phantoms", key_file=key_file, reason="patient02 asked")

    @pytest.fixture
    def two(self, tmp_path: Path, run_ingest, save) -> Path:
        """patient1 of one source is somebody else than patient1 of the other, or so it seems."""
        for name, number in (("a", 1), ("b", 2)):
            save(tmp_path / name / "patient1" / "knee_T1.nii.gz", "knee", number)
            run_ingest(tmp_path / "reg2", tmp_path / name, source={"name": name})
        return tmp_path / "reg2"

    def test_the_same_id_in_two_sources_is_told_and_not_taken(
        self, two: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["patient1", "--registry", str(two), "--source", "a", "--key-file", str(key_file)]
        assert main(["data", "withdraw", *words]) == 0
        told = capsys.readouterr().out
        assert f"not taken: {pseudonym_of('patient1', 'b')} of b" in told
        assert [row.source for row in Registry.open(two).volumes()] == ["b"]

    def test_both_when_asked(self, two: Path, key_file: Path) -> None:
        report = take(two, "patient1", source="a", key_file=key_file, everywhere=True)
        assert len(report.whom.subjects) == 2
        assert Registry.open(two).volumes() == []

    def test_both_when_dedupe_joined_them(self, tmp_path: Path, run_ingest, save) -> None:
        path = tmp_path / "joined"
        for name in ("a", "b"):
            save(tmp_path / name / f"patient{name}1" / "knee_T1.nii.gz", "knee", 1)
            run_ingest(
                path, tmp_path / name, source={"name": name, "subject": "(?P<subject>patient.1)"}
            )
        dedupe(Registry.open(path))
        report = take(path, pseudonym_of("patienta1", "a"))
        assert report.whom.joined == [pseudonym_of("patientb1", "b")]
        assert report.whom.subjects[report.whom.joined[0]] == ["b"]
        assert Registry.open(path).volumes() == []


class TestOutOfReach:
    def test_weights_exports_and_read_only_registries(self, path: Path, tmp_path: Path) -> None:
        subject, other = pseudonym_of("patient02"), pseudonym_of("patient03")
        for name, subjects in (("mine", [subject, other]), ("others", [other]), ("none", None)):
            folder = tmp_path / "runs" / name / "weights"
            folder.mkdir(parents=True)
            config = {"sha256": name * 2, "card": {"subjects": subjects}}
            (folder / "config.json").write_text(json.dumps(config))
        (tmp_path / "runs" / "config.json").write_text("[")
        record_use(path, "weights", [subject], {"sha256": "abc", "folder": "/elsewhere"})
        out = tmp_path / "out"
        export(ExportConfig(registry=path, out=out, format="nifti", where="region = 'brain'"))
        knees = tmp_path / "knees"
        export(ExportConfig(registry=path, out=knees, format="nifti", where="region = 'knee'"))
        report = take(path, subject, weights=(tmp_path / "runs",))
        assert [found["sha256"] for found in report.weights] == ["minemine"]
        kinds = [(use["kind"], use["folder"]) for use in report.uses]
        assert sorted(kinds) == [("export", str(out)), ("weights", "/elsewhere")]
        assert len(uses_of(path, [other])) == 1
        logged = [e.what for e in verify(path).entries if e.verb == "export"]
        assert [what["folder"] for what in logged] == [str(out), str(knees)]

    def test_a_registry_that_cannot_be_written_is_a_warning(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (path / "uses").write_text("in the way")
        record_use(path, "weights", ["P"], {"sha256": "abc"})
        assert "not noted in the registry" in caplog.text

    def test_weights_root_that_does_not_exist(self, path: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="DATA-01"):
            take(path, pseudonym_of("patient02"), weights=(tmp_path / "nowhere",))
        assert not (path / PENDING).exists()

    def test_the_audit_log_tells_of_it_once(self, path: Path) -> None:
        take(path, pseudonym_of("patient02"), reason="consent taken back", actor="steward")
        (entry,) = [e for e in verify(path).entries if e.verb == "withdraw"]
        assert (entry.who, entry.what["volumes"]) == ("steward", 3)
        assert entry.what["reason"] == "consent taken back"
        assert verify(path).notes == []


class TestWhileOthersWork:
    def test_readers_see_all_of_the_patient_or_nothing(self, path: Path) -> None:
        subject = pseudonym_of("patient02")
        seen: set[tuple[int, int]] = set()
        errors: list[Exception] = []
        done = threading.Event()

        def read() -> None:
            registry = Registry.open(path)
            query = (
                "SELECT count(*) FILTER (subject_id = ?) AS own, count(*) AS n FROM volumes "
                "JOIN slices USING (volume_id)"
            )
            while not done.is_set():
                try:
                    seen.add(tuple(registry.sql(query, [subject]).to_pylist()[0].values()))
                except Exception as error:
                    errors.append(error)
                    return

        reader = threading.Thread(target=read)
        reader.start()
        take(path, subject)
        done.set()
        reader.join()
        now = Registry.open(path).sql("SELECT count(*) AS n FROM slices")["n"][0].as_py()
        assert errors == []
        assert seen <= {(12, now + 12), (0, now)}

    def test_another_writer(self, path: Path) -> None:
        with sole_writer(Registry.open(path)), pytest.raises(DataError, match="DATA-08"):
            take(path, pseudonym_of("patient02"))
        assert not (path / LEDGER).exists()

    def test_a_damaged_shard_of_others_stops_it_until_repaired(self, path: Path) -> None:
        registry = Registry.open(path)
        subject = pseudonym_of("patient02")
        shards = "SELECT shard FROM volumes WHERE subject_id = ?"
        where = f"role = 'image' AND shard IN ({shards}) AND subject_id <> ?"
        row = registry.volumes(where, [subject, subject])[0]
        start = registry.sql(
            "SELECT byte_start FROM slices WHERE volume_id = ?", [row.volume_id]
        )["byte_start"][0].as_py()  # fmt: skip
        descriptor = os.open(path / "shards" / row.shard, os.O_RDWR)
        os.pwrite(descriptor, b"\xff\x00\xff\x00", start + 20)
        os.close(descriptor)
        with pytest.raises(DataError, match=r"DATA-08.*core-mri data repair"):
            take(path, subject)
        assert registry.volumes("subject_id = ?", [subject])
        assert list(repair(registry).lost) == [row.volume_id]
        report = take(path, subject)
        assert report.already
        assert report.completed
        assert not registry.volumes("subject_id = ?", [subject])
        assert repair(registry, dry_run=True).damaged == {}
        np.testing.assert_equal(len(registry.volumes("role = 'label'")), 5)


def kill(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.data_registry.kill_withdraw", *words],
        stdout=subprocess.PIPE, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_before_any_change_it_is_completed() -> None:
    assert kill("--moments", "0").endswith("kills; wrong: []\n")


def test_killed_at_two_moments_it_is_completed() -> None:
    assert kill("--moments", "2", "--seed", "3") == "2 kills; wrong: []\n"
