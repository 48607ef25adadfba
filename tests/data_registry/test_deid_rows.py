"""Every row of PS3.15 Table E.1-1, under the Basic Profile and under each option it has.

The expected answer is read off the table's own text here; the engine is asked through whole files.
"""

from __future__ import annotations

import csv
import importlib
import io
import pkgutil
import re
import warnings
from pathlib import Path
from typing import Any, get_args

import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

import data_registry.deidentify
from core_mri.errors import ConfigError, DataError
from data_registry.deidentify.actions import EDITION
from data_registry.deidentify.headers import deidentify_dicom
from data_registry.deidentify.profile import Option, Profile

KEY = bytes(range(32))
TABLE = Path(data_registry.deidentify.__file__).parent / "tables" / "ps3_15_2026c.csv"
OPTIONS = get_args(Option)
TOKEN = "Zqxvwktoken"
SAMPLES: dict[str, Any] = {
    "AE": TOKEN, "AS": "094Y", "AT": 0x00100010, "CS": TOKEN.upper(), "DA": "20110213",
    "DS": "71234.5", "DT": "20110213101112.5", "FD": 71234.5, "FL": 71234.5, "IS": "71234",
    "LO": TOKEN, "LT": TOKEN, "OB": TOKEN.encode() + b"\0", "OW": TOKEN.encode() + b"\0",
    "OF": b"\0\1\2\3", "PN": f"{TOKEN}^{TOKEN}", "SH": TOKEN, "SL": 71234, "SS": 7123, "ST": TOKEN,
    "TM": "101112.345678", "UC": TOKEN, "UI": "1.3.12.2.1107.5.7777777", "UL": 71234,
    "UN": b"Zqxvwk",
    "UR": f"https://{TOKEN}.example", "US": 7123, "UT": TOKEN,
}  # fmt: skip


def table() -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


ROWS = [row for row in table() if re.fullmatch("[0-9A-F]{8}", row["tag"])]
DOCUMENT = "00420011"
DATA_SET_ROWS = [row for row in ROWS if int(row["tag"][:4], 16) > 0x0007 and row["tag"] != DOCUMENT]
"""Without commands, file meta and media directory, which are no part of a data set, and without
encapsulated documents, which are refused whole."""


def sample(row: dict[str, str]) -> tuple[int, str, Any]:
    tag = int(row["tag"], 16)
    try:
        vr = dictionary_VR(tag)[:2]
    except KeyError:
        vr = "LO"  # newer than the installed dictionary
    if vr == "SQ":
        item = Dataset()
        item.PatientName, item.StudyComments, item.EchoTime = f"{TOKEN}^{TOKEN}", TOKEN, "7.25"
        item.ReferencedSOPInstanceUID = "1.3.12.2.1107.5.8888888"
        return tag, vr, Sequence([item])
    return tag, vr, SAMPLES[vr]


def file_with(tag: int, vr: str, value: Any) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.5", "1.2.3.6"
    dataset.add_new(tag, vr, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def outcome(row: dict[str, str], profile: Profile) -> tuple[str, bool, Any]:
    """What became of the attribute: a letter, whether the token is in any byte, and the value."""
    tag, vr, value = sample(row)
    clean = deidentify_dicom(file_with(tag, vr, value), KEY, profile).content
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(clean))
        leaked = TOKEN.lower().encode() in clean.lower()
        if tag not in dataset:
            return "X", leaked, None
        new = dataset[tag].value
        if vr == "SQ":
            return ("Z", leaked, new) if not new else ("C", leaked, new)
        if new is None or (not isinstance(new, (int, float)) and len(new) == 0):
            return "Z", leaked, new
        original = pydicom.dcmread(io.BytesIO(file_with(tag, vr, value)))[tag].value
    if new == original:
        return "K", leaked, new
    if vr == "UI" and str(new).startswith("2.25."):
        return "U", leaked, new
    return "D", leaked, new


ALLOWED = {
    "X": {"X"},
    "Z": {"Z", "D"},
    "D": {"D", "U", "C"},
    "U": {"U", "K", "C"},
    "X/Z": {"X", "Z"},
    "X/D": {"X", "D", "C"},
    "Z/D": {"Z", "D", "C"},
    "X/Z/D": {"X", "Z", "D", "C"},
    "X/Z/U*": {"C"},
}
"""Outcomes that the definitions of E.1.1 allow; a sequence that stays is cleaned inside."""


def test_the_table_is_whole() -> None:
    assert len(table()) == 656  # 655 and one for all private attributes
    assert len({row["tag"] for row in table()}) == 656
    assert sum(bool(row["modified_dates"]) for row in table()) == 165
    assert sum(bool(row["descriptors"]) for row in table()) == 125
    assert sum(bool(row["uids"]) for row in table()) == 59


class TestEdition:
    def test_equals_the_package(self) -> None:
        package = pytest.importorskip("dicomanonymizer.dicom_anonymization_databases")
        database = importlib.import_module(f"{package.__name__}.dicomfields_{EDITION}")
        letters = {
            "D_TAGS": "D", "Z_TAGS": "Z", "X_TAGS": "X", "U_TAGS": "U", "Z_D_TAGS": "Z/D",
            "X_Z_TAGS": "X/Z", "X_D_TAGS": "X/D", "X_Z_D_TAGS": "X/Z/D",
            "X_Z_U_STAR_TAGS": "X/Z/U*",
        }  # fmt: skip
        published = {
            f"{tag[0]:04X}{tag[1]:04X}": action
            for name, action in letters.items()
            for tag in getattr(database, name)
            if len(tag) == 2
        }
        assert {row["tag"]: row["basic"] for row in ROWS} == published

    def test_no_newer_one_is_unused(self) -> None:
        package = pytest.importorskip("dicomanonymizer.dicom_anonymization_databases")
        names = [module.name for module in pkgutil.iter_modules(package.__path__)]
        editions = sorted(name.removeprefix("dicomfields_") for name in names)
        assert editions[-1] == EDITION, "make the tables anew: tests/references/make_deid_tables.py"


def test_basic_action_of_every_row() -> None:
    wrong = []
    for row in DATA_SET_ROWS:
        got, leaked, _ = outcome(row, Profile("basic"))
        kept_number = got == "K" and row["basic"] != "U"
        if got not in ALLOWED[row["basic"]] or leaked or kept_number:
            wrong.append((row["tag"], row["basic"], got, leaked))
    assert wrong == []


@pytest.mark.parametrize("option", OPTIONS)
def test_every_row_of_an_option(option: Option) -> None:
    wrong, seen = [], 0
    for row in DATA_SET_ROWS:
        action = row[option]
        if not action:
            continue
        seen += 1
        got, leaked, value = outcome(row, Profile("one", frozenset({option})))
        vr = sample(row)[1]
        if action == "K":
            if vr == "AS":
                good = value == "090Y"  # over 89
            elif row["tag"] == "00102160":
                good = not value  # a word that is no ethnic group
            else:
                good = got in ("K", "C") or vr in ("OB", "OW")
        elif vr in ("DA", "DT", "TM"):
            good = got == "D" and not leaked
        else:
            good = got in ("C", "Z", "D", "X", "U") and not leaked
        if not good:
            wrong.append((row["tag"], action, got, leaked))
    assert wrong == []
    assert seen or option in ("safe_private",)


def test_documents_are_refused() -> None:
    with pytest.raises(DataError, match="document"):
        deidentify_dicom(file_with(int(DOCUMENT, 16), "OB", b"%PDF"), KEY, Profile("basic"))


@pytest.mark.parametrize("group", [0x5000, 0x5002, 0x501E])
def test_curves_of_every_group(group: int) -> None:
    for element, vr in ((0x2500, "LO"), (0x3000, "OW")):
        tag = group << 16 | element
        clean = deidentify_dicom(file_with(tag, vr, SAMPLES[vr]), KEY, Profile("basic")).content
        assert TOKEN.encode() not in clean


@pytest.mark.parametrize("group", [0x6000, 0x6002, 0x601E])
@pytest.mark.parametrize("options", [frozenset(), frozenset({"graphics"})])
def test_overlays_of_every_group(group: int, options: frozenset[Option]) -> None:
    for element, vr in ((0x4000, "LT"), (0x3000, "OW")):
        tag = group << 16 | element
        profile = Profile("overlay", options)
        clean = deidentify_dicom(file_with(tag, vr, SAMPLES[vr]), KEY, profile).content
        assert TOKEN.encode() not in clean


def test_overlay_geometry_stays() -> None:
    clean = deidentify_dicom(file_with(0x60000010, "US", 64), KEY, Profile("basic")).content
    assert pydicom.dcmread(io.BytesIO(clean))[0x60000010].value == 64


class TestSequences:
    def cleaned(self, keyword: str, profile: Profile) -> Dataset:
        from pydicom.datadict import tag_for_keyword

        tag = tag_for_keyword(keyword)
        _, vr, value = sample({"tag": f"{tag:08X}"})
        content = deidentify_dicom(file_with(int(tag or 0), vr, value), KEY, profile).content
        return pydicom.dcmread(io.BytesIO(content))

    @pytest.mark.parametrize("keyword", ["SourceImageSequence", "ReferencedImageSequence"])
    def test_references_are_cleaned_and_resolve(self, keyword: str) -> None:
        (item,) = self.cleaned(keyword, Profile("basic"))[keyword].value
        assert item.EchoTime == 7.25
        assert item.ReferencedSOPInstanceUID.startswith("2.25.")
        assert "StudyComments" not in item

    def test_dummy_sequences_hold_dummies(self) -> None:
        (item,) = self.cleaned("ContentSequence", Profile("basic"))["ContentSequence"].value
        assert TOKEN not in str(item)

    def test_structured_content_is_cleaned_under_its_option(self) -> None:
        profile = Profile("sr", frozenset({"structured_content"}))
        (item,) = self.cleaned("ContentSequence", profile)["ContentSequence"].value
        assert item.EchoTime == 7.25


def test_kept_uids_that_are_paths_are_refused() -> None:
    content = file_with(0x00180081, "DS", "7.25").replace(b"1.2.3.5", b"../../x")
    assert deidentify_dicom(content, KEY, Profile("basic")).study.startswith("2.25.")
    with pytest.raises(DataError, match="UID"):
        deidentify_dicom(content, KEY, Profile("keep", frozenset({"uids"})))


class TestProfile:
    def test_two_options_about_dates(self) -> None:
        with pytest.raises(ConfigError, match="either kept or modified"):
            Profile("both", frozenset({"full_dates", "modified_dates"}))

    def test_unknown_option(self) -> None:
        with pytest.raises(ConfigError, match="no option"):
            Profile("x", frozenset({"everything"}))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("options", "codes", "temporal"),
        [
            ((), ["113100"], "REMOVED"),
            (("full_dates",), ["113100", "113106"], "UNMODIFIED"),
            (("modified_dates", "uids"), ["113100", "113107", "113110"], "MODIFIED"),
            (("device", "institution"), ["113100", "113109", "113112"], "REMOVED"),
        ],
    )
    def test_recorded_codes(
        self, options: tuple[Option, ...], codes: list[str], temporal: str
    ) -> None:
        profile = Profile("p", frozenset(options))
        content = deidentify_dicom(file_with(0x00180081, "DS", "7.25"), KEY, profile).content
        dataset = pydicom.dcmread(io.BytesIO(content))
        sequence = dataset.DeidentificationMethodCodeSequence
        assert [item.CodeValue for item in sequence] == codes
        assert {item.CodingSchemeDesignator for item in sequence} == {"DCM"}
        assert dataset.LongitudinalTemporalInformationModified == temporal
        assert dataset.PatientIdentityRemoved == "YES"
        assert all(len(value) <= 64 for value in dataset.DeidentificationMethod)
        assert "PS3.15 2026c" in dataset.DeidentificationMethod[0]
