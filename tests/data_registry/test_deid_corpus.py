"""The engine on files with planted identifiers: none survives, and all that should stay does.

The corpus and its answers import nothing of the engine. `python -m tests.data_registry.deid_corpus`
prints the same scores for any seed and size.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileMetaDataset

from data_registry.deidentify.audit import AUDIT
from data_registry.deidentify.cli import main
from tests.data_registry.deid_corpus.attributes import CLASSIC, SAFE_PRIVATE
from tests.data_registry.deid_corpus.generate import corpus, write
from tests.data_registry.deid_corpus.objects import Planted
from tests.data_registry.deid_corpus.score import found, score


def run(files: list[Planted], tmp_path: Path, key_file: Path, *words: str) -> dict[Path, bytes]:
    source, out = tmp_path / "in", tmp_path / "out"
    write(files, source)
    words = ("--extras", "reports", *words)
    assert main([str(source), str(out), "--key-file", str(key_file), *words]) == 0
    return read(out)


def read(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_generator_plants_what_it_notes() -> None:
    missing: Counter[str] = Counter()
    for file in corpus(5, 3):
        whole = file.content + file.name.encode()
        if file.content[132:].find(b"1.2.840.10008.1.2.1.99") >= 0:  # deflated
            continue
        hits = set(found(file.tokens, whole))
        missing[file.kind] += len(set(file.tokens) - hits)
    assert missing.total() == 0, missing


def test_same_seed_same_corpus() -> None:
    first, again, other = (list(corpus(seed, 1)) for seed in (1, 1, 2))
    assert [f.content for f in first] == [f.content for f in again]
    assert first[0].content != other[0].content


@pytest.mark.parametrize("seed", [101, 102])
def test_no_leak_and_every_check(seed: int, tmp_path: Path, key_file: Path) -> None:
    files = list(corpus(seed, 7))
    result = score(files, run(files, tmp_path, key_file, "--jobs", "1"))
    assert result.tokens > 15_000
    assert result.leaks.total() == 0, result.leaks
    assert result.without_output.total() == 0
    assert result.rate >= 0.9995, result.missed
    assert set(result.passed) == {
        "tag_retained", "text_notnull", "text_removed", "text_retained", "date_shifted",
        "uid_changed", "uid_consistent", "patid_consistent", "pixels_hidden", "pixels_retained",
    }  # fmt: skip


@pytest.mark.slow
def test_no_leak_in_a_hundred_thousand_tokens(tmp_path: Path, key_file: Path) -> None:
    files = list(corpus(2026, 48))
    result = score(files, run(files, tmp_path, key_file))
    assert result.tokens >= 100_000
    assert result.leaks.total() == 0, result.leaks
    assert result.rate >= 0.9995, result.missed


def test_sixty_attributes_are_checked() -> None:
    assert len(CLASSIC) == 60
    assert sum(map(len, SAFE_PRIVATE.values())) == 10


def test_the_score_sees_a_tool_that_does_nothing() -> None:
    files = list(corpus(1, 1))
    result = score(files, {Path(f"{file.number}.dcm"): file.content for file in files})
    assert result.leaks.total() > 1000
    assert result.failed["text_removed"] > 100
    assert result.failed["uid_changed"] > 10
    assert result.failed["date_shifted"] > 10


def test_the_score_sees_a_tool_that_destroys() -> None:
    files = list(corpus(1, 1))
    outputs = {}
    for file in files:
        dataset = pydicom.dcmread(io.BytesIO(file.content))
        empty = pydicom.Dataset()
        empty.SOPClassUID, empty.SOPInstanceUID = "1.2.3", "1.2.4"
        empty.InstanceNumber, empty.file_meta = dataset.get("InstanceNumber"), FileMetaDataset()
        empty.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, empty, enforce_file_format=True)
        outputs[Path(f"{file.number}.dcm")] = buffer.getvalue()
    assert score(files, outputs).failed["text_retained"] > 200


@pytest.mark.slow
def test_same_bytes_for_any_number_of_workers(tmp_path: Path, key_file: Path) -> None:
    files = list(corpus(7, 6))
    source = tmp_path / "in"
    write(files, source)
    outputs = []
    for jobs in (1, 2, 4):
        out = tmp_path / f"out{jobs}"
        words = [str(source), str(out), "--key-file", str(key_file), "--extras", "reports"]
        assert main([*words, "--jobs", str(jobs)]) == 0
        outputs.append(read(out))
    assert outputs[0] == outputs[1] == outputs[2]


def test_own_output_passes_unchanged(tmp_path: Path, key_file: Path) -> None:
    files = list(corpus(8, 2))
    first = run(files, tmp_path, key_file)
    again = tmp_path / "again"
    words = [
        str(tmp_path / "out"),
        str(again),
        "--key-file",
        str(key_file),
        "--strict",
        "--extras",
        "reports",
    ]
    assert main(words) == 0
    del first[Path(AUDIT)]
    second = read(again)
    del second[Path(AUDIT)]
    assert second == first


def test_audit_holds_ids_counts_and_versions(tmp_path: Path, key_file: Path) -> None:
    files = list(corpus(9, 1))
    outputs = run(files, tmp_path, key_file)
    head, *lines = map(json.loads, outputs[Path(AUDIT)].decode().splitlines())
    assert head["table"] == "PS3.15 2026c (options 2024e)"
    assert head["codes"] == ["113100", "113104", "113105", "113107", "113108", "113111"]
    assert Counter(line["status"] for line in lines) == {
        "done": 8, "quarantined": 1, "left out": 1
    }  # fmt: skip
    done = next(line for line in lines if line["status"] == "done")
    assert done["verdict"] == "passed"
    assert set("KCXUD") <= set(done["actions"])
    assert done["source"] != done["result"]


def test_nothing_reaches_the_log(
    tmp_path: Path, key_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = list(corpus(10, 1))
    write(files, tmp_path / "in")
    path = tmp_path / "in" / f"{files[0].tokens[0]}_cut.dcm"
    path.write_bytes(files[0].content[:-300])
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--key-file", str(key_file)]
    assert main(words) == 0
    captured = capfd.readouterr()
    tokens = [token for file in files for token in file.tokens]
    assert found(tokens, (captured.out + captured.err).encode()) == []
