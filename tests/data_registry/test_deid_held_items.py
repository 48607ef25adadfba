"""What was held back for text or a face is let out when a person has looked at it, not before."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest

from core_mri.errors import ConfigError
from data_registry.deidentify.audit import AUDIT, read_audit
from data_registry.deidentify.cli import main
from data_registry.deidentify.folder import find_files
from data_registry.deidentify.identifiers import file_id, load_key
from data_registry.deidentify.ledger import Draw, Ledger
from data_registry.deidentify.review_cli import main as review
from data_registry.deidentify.review_items import Item, held_items, items_of
from data_registry.deidentify.review_pictures import header, picture
from data_registry.deidentify.verify_cli import main as verify
from tests.data_registry.burned_text import Burn, burn, write_series
from tests.data_registry.test_deid_burned_in import phantom

pytest.importorskip("rapidocr")


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, key_file: Path) -> None:
    """A series with text that is no identifier, one with a name, one without, and a NIfTI file."""
    import nibabel as nib

    for name, text in (("protocol", "AXIAL T2 FLAIR"), ("named", "ZQXVWK ANNA")):
        written = burn(
            phantom(size=256, slices=3), Burn(text, "DejaVuSans.ttf", 14, 1.0, "top left")
        )
        assert written is not None
        write_series(written, tmp_path / "in" / name, name, PatientName="ZQXVWK^ANNA")
        if name == "protocol":
            array = written.transpose(2, 1, 0).astype(np.int16)
            (tmp_path / "in" / "nifti").mkdir()
            nib.save(
                nib.Nifti1Image(array, np.eye(4)), tmp_path / "in" / "nifti" / "sub-1_T2w.nii.gz"
            )
    write_series(phantom(slices=3), tmp_path / "in" / "clean", "clean")


def run(tmp_path: Path, key_file: Path, *words: str) -> Counter[str]:
    words = ("--key-file", str(key_file), "--jobs", "1", "--pixels", "check", *words)
    main([str(tmp_path / "in"), str(tmp_path / "out"), *words])
    outcomes = read_audit(tmp_path / "out")[1].values()
    return Counter(outcome.code or "done" for outcome in outcomes)


def held(tmp_path: Path, key_file: Path) -> dict[str, Item]:
    """By the folder of the originals."""
    key = load_key(key_file, create=False)
    paths = find_files(tmp_path / "in")
    originals = {file_id(key, path.absolute()): path for path in paths}
    return {i.files[0].parent.name: i for i in held_items(tmp_path / "out", originals)}


def say(tmp_path: Path, item: Item, verdict: str) -> None:
    Ledger.open(tmp_path / "out").add(item.name, item.seen, verdict, "ab", Draw())


def test_the_way_out(tmp_path: Path, key_file: Path) -> None:
    assert run(tmp_path, key_file) == {"done": 3, "DATA-16": 7}
    items = held(tmp_path, key_file)
    assert {name: (len(i.files), i.why) for name, i in items.items()} == {
        "protocol": (3, "text"), "named": (3, "text"), "nifti": (1, "text")
    }  # fmt: skip
    assert not any("ZQXVWK" in item.name for item in items.values())
    assert ("Patient's Name", "ZQXVWK^ANNA") in header(items["named"])
    assert picture(items["named"]).startswith("data:image/png;base64,")
    # Nobody has said anything: nothing comes out.
    assert run(tmp_path, key_file) == {"done": 3, "DATA-16": 7}
    say(tmp_path, items["protocol"], "pass")
    say(tmp_path, items["named"], "fail")
    say(tmp_path, items["nifti"], "pass")
    assert run(tmp_path, key_file) == {"done": 7, "DATA-16": 3}
    assert verify([str(tmp_path / "in"), str(tmp_path / "out"), "--jobs", "1"]) == 0
    assert Counter(i.why for i in items_of(tmp_path / "out", Draw())) == {"sample": 3}
    lines = (tmp_path / "out" / AUDIT).read_text().splitlines()
    assert run(tmp_path, key_file) == {"done": 7, "DATA-16": 3}
    assert (tmp_path / "out" / AUDIT).read_text().splitlines() == lines  # nothing was done again


def test_a_verdict_is_on_the_files_that_were_seen(tmp_path: Path, key_file: Path) -> None:
    run(tmp_path, key_file)
    say(tmp_path, held(tmp_path, key_file)["protocol"], "pass")
    path = sorted((tmp_path / "in" / "protocol").rglob("*.dcm"))[0]
    dataset = pydicom.dcmread(path)
    dataset.InstanceNumber = 77
    dataset.save_as(path)
    os.utime(path, ns=(1, 1))
    # The other two files are those that were seen; the changed one was seen by nobody.
    assert run(tmp_path, key_file) == {"done": 5, "DATA-16": 5}


def test_a_later_verdict_before_the_run_counts(tmp_path: Path, key_file: Path) -> None:
    run(tmp_path, key_file)
    item = held(tmp_path, key_file)["protocol"]
    say(tmp_path, item, "pass")
    say(tmp_path, item, "unsure")
    assert run(tmp_path, key_file) == {"done": 3, "DATA-16": 7}


def test_passed_for_text_and_then_for_a_face(tmp_path: Path, key_file: Path) -> None:
    pytest.importorskip("pydeface")
    assert run(tmp_path, key_file, "--faces", "crop")["DATA-16"] == 7
    say(tmp_path, held(tmp_path, key_file)["protocol"], "pass")
    run(tmp_path, key_file, "--faces", "crop")
    item = held(tmp_path, key_file)["protocol"]
    assert item.why == "face"  # no region is told, and nothing can be fitted to three slices
    say(tmp_path, item, "pass")
    run(tmp_path, key_file, "--faces", "crop")
    (line,) = {
        (line["status"], line["code"])
        for line in map(json.loads, (tmp_path / "out" / AUDIT).read_text().splitlines()[-3:])
    }
    assert line == ("done", "")
    path = sorted((tmp_path / "out").rglob("*.dcm"))[0]
    codes = [i.CodeValue for i in pydicom.dcmread(path).DeidentificationMethodCodeSequence]
    assert "113101" in codes
    assert "113102" not in codes  # no face was removed: a person saw that there is none


def test_review_command_shows_them(
    tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, key_file)
    capsys.readouterr()
    words = [str(tmp_path / "out"), "--status", "--json"]
    review(words)
    assert json.loads(capsys.readouterr().out)["items"] == 1
    review([*words, "--originals", str(tmp_path / "in"), "--key-file", str(key_file)])
    assert json.loads(capsys.readouterr().out)["items"] == 4
    with pytest.raises(ConfigError, match="belong together"):
        review([*words, "--originals", str(tmp_path / "in")])
