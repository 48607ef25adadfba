"""The audit log: a chain that shows what was altered, and that crashes do not break."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core_mri.__main__ import main
from data_registry import Registry
from data_registry.cohorts import freeze
from data_registry.dedupe import dedupe
from data_registry.export import ExportConfig, export
from data_registry.governance import audit_log
from data_registry.governance.audit_log import HEAD, LOG, append, verify
from data_registry.relabel import relabel
from tests.workers import clean_process


@pytest.fixture
def log(tmp_path: Path) -> Path:
    for number in range(6):
        append(tmp_path, "ingest", {"volumes": number}, who="ada")
    return tmp_path


def lines(path: Path) -> list[str]:
    return (path / LOG).read_text().splitlines()


def rewrite(path: Path, new: list[str]) -> None:
    (path / LOG).write_text("".join(f"{line}\n" for line in new))


def swap(found: list[str]) -> list[str]:
    return [*found[:2], found[3], found[2], *found[4:]]


def alter(found: list[str]) -> list[str]:
    return [line.replace('"volumes":2', '"volumes":3') for line in found]


def forge(found: list[str]) -> list[str]:
    """Altered, and given a hash that fits; the next entry still names the old one."""
    entry = audit_log.Entry(**{**json.loads(found[2]), "who": "eve"})
    new = {**vars(entry), "hash": entry.true_hash()}
    return [*found[:2], json.dumps(new), *found[3:]]


class TestWhole:
    def test_a_log_as_written_is_whole(self, log: Path) -> None:
        check = verify(log)
        assert (check.broken, check.notes) == ([], [])
        assert [(e.number, e.who, e.what) for e in check.entries] == [
            (n + 1, "ada", {"volumes": n}) for n in range(6)
        ]
        assert verify(log, expect=check.head).broken == []

    def test_no_log_is_an_empty_one(self, tmp_path: Path) -> None:
        assert verify(tmp_path).head == "0:"

    def test_the_account_is_who_unless_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(audit_log.ACTOR, "steward")
        assert append(tmp_path, "x", {}).who == "steward"
        assert append(tmp_path, "x", {}, who="grace").who == "grace"


class TestTampering:
    @pytest.mark.parametrize(
        ("change", "finding"),
        [
            (alter, "entry 3 was altered"),
            (forge, "entry 4 follows another entry than 3"),
            (swap, "entry 3 stands behind entry 4"),
            (lambda found: found[:2] + found[3:], "entry 3 is gone"),
            (lambda found: found[:1] + found[4:], "entry 2 to 4 is gone"),
            (lambda found: found[1:], "entry 1 is gone"),
            (lambda found: [*found, found[-1]], "entry 6 stands behind entry 6"),
            (lambda found: found[:-2], "the log ends at entry 4, and audit.head names entry 6"),
            (lambda found: [*found[:3], "{}", *found[4:]], "line 4 is no entry"),
            (lambda found: found[:0], "the log ends at entry 0"),
        ],
    )
    def test_is_found_and_named(
        self, log: Path, change: Callable[[list[str]], list[str]], finding: str
    ) -> None:
        rewrite(log, change(lines(log)))
        assert any(finding in line for line in verify(log).broken), verify(log).broken

    def test_a_cut_tail_with_its_head_needs_a_head_from_elsewhere(self, log: Path) -> None:
        kept = verify(log).head
        found = lines(log)[:-2]
        rewrite(log, found)
        (log / HEAD).write_text(f"4:{json.loads(found[-1])['hash']}\n")
        assert verify(log).broken == []
        assert verify(log, expect=kept).broken == [
            "the log ends at entry 4, and --expect names entry 6: cut off"
        ]

    def test_a_log_written_anew_needs_a_head_from_elsewhere(self, log: Path) -> None:
        kept = verify(log).head
        (log / LOG).unlink()
        (log / HEAD).unlink()
        for number in range(7):
            append(log, "ingest", {"volumes": number}, who="eve")
        assert verify(log).broken == []
        assert "entry 6 is not the one" in verify(log, expect=kept).broken[0]

    def test_writing_on_hides_nothing(self, log: Path) -> None:
        rewrite(log, lines(log)[:-2])
        append(log, "ingest", {})
        broken = verify(log).broken
        assert any("entry 5 to 6 is gone" in line for line in broken)
        assert any("entry 7 was written on a broken log" in line for line in broken)


class TestCrashes:
    @pytest.mark.parametrize("length", [1, 40, -1])
    def test_a_torn_line_is_cut_off_and_told(self, log: Path, length: int) -> None:
        append(log, "ingest", {"volumes": 6}, who="ada")
        *whole, last = lines(log)
        rewrite(log, whole)
        (log / HEAD).write_text(f"6:{json.loads(whole[-1])['hash']}\n")  # as the crash left it
        torn = last[:length]
        with (log / LOG).open("a") as file:
            file.write(torn)
        check = verify(log)
        assert check.broken == []
        assert f"the last {len(torn)} bytes" in check.notes[0]
        entry = append(log, "label", {})
        assert (entry.number, entry.what) == (7, {"torn_bytes": len(torn)})
        assert verify(log).broken == [] == verify(log).notes

    def test_a_head_that_lags_is_no_tampering(self, log: Path) -> None:
        (log / HEAD).write_text(f"5:{json.loads(lines(log)[4])['hash']}\n")
        assert verify(log).broken == []
        append(log, "label", {})
        assert verify(log).broken == []

    def test_long_lines_are_read_back(self, tmp_path: Path) -> None:
        append(tmp_path, "x", {"many": ["é" * 1000] * 300})
        append(tmp_path, "y", {})
        assert [e.verb for e in verify(tmp_path).entries] == ["x", "y"]
        assert verify(tmp_path).broken == []


def _write(path: Path, own: int) -> None:
    for number in range(20):
        append(path, "ingest", {"writer": own, "number": number})


def test_writers_at_once_make_one_chain(tmp_path: Path) -> None:
    writers = [clean_process(_write, tmp_path, own) for own in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    check = verify(tmp_path)
    assert check.broken == []
    assert len(check.entries) == 80
    for own in range(4):
        numbers = [e.what["number"] for e in check.entries if e.what["writer"] == own]
        assert numbers == list(range(20))


class TestVerbs:
    def test_each_change_and_release_is_one_entry(
        self, scans: Path, run_ingest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "reg"
        run_ingest(path, scans)
        run_ingest(path, scans)  # adds nothing
        registry = Registry.open(path)
        registry.stats()
        freeze(registry, "knees", "region = 'knee'")
        dedupe(registry)
        relabel(registry)  # changes nothing
        out = tmp_path / "out"
        export(ExportConfig(registry=path, out=out, format="nifti", cohort="knees"))
        words = ["data", "dedupe", "--registry", str(path), "--jobs", "1"]
        assert main([*words, "--deny-list", str(tmp_path / "deny.parquet")]) == 0
        capsys.readouterr()
        assert main(["data", "audit", "--registry", str(path), "--verify", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        verbs = [entry["verb"] for entry in told["entries"]]
        assert verbs == ["ingest", "freeze", "dedupe", "export", "deny list"]
        ingest, _, _, export_entry, _ = (entry["what"] for entry in told["entries"])
        assert ingest["volumes_added"] == 14
        assert (export_entry["volumes"], export_entry["subjects"]) == (6, 3)
        ids = {name for row in registry.volumes() for name in (row.subject_id, row.volume_id)}
        assert not any(name in (path / LOG).read_text() for name in ids)

    def test_a_broken_log_is_exit_code_1_with_verify_only(
        self, log: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Registry.create(log / "reg")
        for number in range(3):
            append(log / "reg", "ingest", {"volumes": number})
        rewrite(log / "reg", alter(lines(log / "reg")))
        assert main(["data", "audit", "--registry", str(log / "reg")]) == 0
        assert main(["data", "audit", "--registry", str(log / "reg"), "--verify"]) == 1
        assert "DATA-26" in capsys.readouterr().err
