"""Header facts: technical values stay, ids are keyed, free text keeps known words only."""

from __future__ import annotations

import pytest

from core_mri.volume import FactValue
from data_registry.deidentify.descriptors import clean_text, name_words
from data_registry.deidentify.facts import deidentify_facts
from data_registry.deidentify.identifiers import keyed_uid, patient_pseudonym
from data_registry.deidentify.treatments import cap_age
from data_registry.vocabulary import is_technical

KEY = bytes(range(32))
TECHNICAL: dict[str, FactValue] = {
    "Modality": "MR",
    "MagneticFieldStrength": 3.0,
    "EchoTime": 2.98,
    "RepetitionTime": 2300,
    "InversionTime": "900",
    "FlipAngle": 9.0,
    "EchoTrainLength": 1,
    "MRAcquisitionType": "3D",
    "ScanningSequence": "GR\\IR",
    "SequenceVariant": "SK\\SP\\MP",
    "PatientPosition": "HFS",
    "PatientSex": "F",
    "BodyPartExamined": "BRAIN",
    "SeriesDescription": "t1_mprage_sag_p2_iso",
    "ImageType": "ORIGINAL\\PRIMARY\\M\\ND\\NORM",
}


class TestKept:
    def test_technical_values(self) -> None:
        facts = dict(TECHNICAL, SeriesDescription="t1_mprage_sag_iso")
        clean = deidentify_facts(facts, KEY)
        del clean["PatientID"]
        assert clean == {**facts, "InversionTime": 900.0}

    def test_cleaning_again_changes_ids_only(self) -> None:
        once = deidentify_facts(TECHNICAL, KEY)
        twice = deidentify_facts(once, KEY)
        assert {k: v for k, v in twice.items() if k != "PatientID"} == {
            k: v for k, v in once.items() if k != "PatientID"
        }

    @pytest.mark.parametrize(
        "text",
        [
            "t2_tse_tra",
            "ep2d_diff_tra_DYNDIST_ADC",
            "FSE PD AXIAL OBL",
            "abdomen^liver",
            "B Ax T1 +C",
            "*fl3d1r",
            "DERIVED\\SECONDARY\\MPR\\CSA MPR",
        ],
    )
    def test_descriptions_without_names_are_unchanged(self, text: str) -> None:
        assert clean_text(text) == text


class TestRemoved:
    @pytest.mark.parametrize(
        "keyword",
        ["PatientName", "PatientBirthDate", "InstitutionName", "AccessionNumber", "StudyDate", "X"],
    )
    def test_unlisted_keywords(self, keyword: str) -> None:
        assert keyword not in deidentify_facts({keyword: "Smith"}, KEY)

    @pytest.mark.parametrize(
        ("text", "left"),
        [
            ("T1 mprage Smith", "t1 mprage"),
            ("Brain 4711 of Dr. Neill", "brain of"),
            ("t1 2021-03-14", "t1"),
            ("knee_19650312_left", "knee left"),
            ("Schulter Müller", "schulter"),
            ("MRT Schädel", "mrt schadel"),
            ("脳 T2 山田", "t2"),
            ("b1000 b4711", "b1000"),
            ("tse2d1_x", "tse2d1"),
            ("head\nname", "head"),
        ],
    )
    def test_unknown_words(self, text: str, left: str) -> None:
        assert clean_text(text) == left

    @pytest.mark.parametrize("name", ["Foot^Anna", "FOOT", "Anna Maria=Foot"])
    def test_own_name_even_when_technical(self, name: str) -> None:
        assert clean_text("t1 Foot sag", name_words([name])) == "t1 sag"

    def test_own_number(self) -> None:
        facts = {"PatientID": "KNEE-07", "SeriesDescription": "pd knee sag"}
        assert deidentify_facts(facts, KEY)["SeriesDescription"] == "pd sag"

    @pytest.mark.parametrize(
        ("keyword", "value"),
        [
            ("EchoTime", "Smith"),
            ("FlipAngle", float("nan")),
            ("PatientSex", "Smith"),
            ("Modality", "SMITH"),
            ("PatientPosition", "Smith"),
            ("PatientAge", "born 1931"),
            ("SeriesDescription", "Smith"),
        ],
    )
    def test_values_that_do_not_fit(self, keyword: str, value: str | float) -> None:
        assert keyword not in deidentify_facts({keyword: value}, KEY)

    def test_only_the_foreign_code_goes(self) -> None:
        assert deidentify_facts({"ScanningSequence": "SE\\SMITH"}, KEY)["ScanningSequence"] == "SE"


# Frequent given names and surnames of several countries.
NAMES = (
    "james mary john patricia robert jennifer michael linda david elizabeth william barbara "
    "richard susan joseph jessica thomas sarah charles karen daniel lisa matthew nancy "
    "anthony betty mark sandra anna maria peter hans klaus ursula sabine petra wolfgang heike "
    "tim max sasha rene brian antonio jose carmen juan francisco dolores giuseppe giovanni "
    "luca sofia marie pierre jean nguyen wang li zhang liu chen yang huang kim lee park choi "
    "tanaka suzuki sato yamada smith johnson williams brown jones garcia miller davis "
    "rodriguez martinez hernandez lopez gonzalez wilson anderson taylor moore jackson martin "
    "perez thompson white harris sanchez clark mueller muller schmidt schneider fischer weber "
    "meyer wagner becker schulz hoffmann koch rossi russo ferrari esposito silva santos "
    "oliveira jansen devries ivanov singh kumar khan ali "
)


class TestVocabulary:
    def test_holds_no_frequent_name(self) -> None:
        assert [name for name in NAMES.split() if is_technical(name)] == []


class TestKeyed:
    def test_uids_and_patient(self) -> None:
        facts = {
            "PatientID": "4711",
            "StudyInstanceUID": "1.2.3",
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
        }
        clean = deidentify_facts(facts, KEY)
        assert clean == {
            "PatientID": patient_pseudonym(KEY, "4711"),
            "StudyInstanceUID": keyed_uid(KEY, "1.2.3"),
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
        }

    def test_without_number_the_study_stands_in(self) -> None:
        clean = deidentify_facts({"StudyInstanceUID": "1.2.3"}, KEY)
        assert clean["PatientID"] == patient_pseudonym(KEY, "", study_uid="1.2.3")


class TestAge:
    @pytest.mark.parametrize(
        ("age", "capped"),
        [
            ("045Y", "045Y"),
            ("89Y", "089Y"),
            ("090Y", "090Y"),
            ("091Y", "090Y"),
            ("104Y", "090Y"),
            ("003M", "003M"),
            ("999W", "999W"),
            ("", ""),
            ("45", ""),
            ("Smith", ""),
        ],
    )
    def test_over_89_is_90(self, age: str, capped: str) -> None:
        assert cap_age(age) == capped
