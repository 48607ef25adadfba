"""Ready cards: each ingests a folder of its data set's layout as it should."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from core_mri.__main__ import main
from core_mri.errors import ConfigError, DataError
from data_registry import IngestConfig, Registry, Source, ingest, load_sources
from data_registry.deidentify.identifiers import pseudonym
from data_registry.governance.licences import Terms
from data_registry.governance.propagation import registered_sources
from data_registry.source_cards import CardFacts, card_names, load_card
from data_registry.splits import split_of
from tests.data_registry.conftest import KEY
from tests.data_registry.fake_scans import make_folder

LAYOUTS = Path(__file__).parent / "source_layouts"
ROLES = {"images": "image", "labels": "label", "kspace": "kspace"}


def test_every_card_has_a_layout() -> None:
    assert {path.stem for path in LAYOUTS.glob("*.yaml")} == set(card_names())
    assert len(card_names()) >= 30


@pytest.mark.parametrize("name", card_names())
class TestReadyCard:
    def test_ingests_its_layout(self, name: str, tmp_path: Path, key_file: Path) -> None:
        layout = yaml.safe_load((LAYOUTS / f"{name}.yaml").read_text())
        card = load_card(name)
        make_folder(tmp_path / "data", layout["files"])
        config = IngestConfig(
            registry=tmp_path / "reg",
            sources=load_sources(name, tmp_path / "data"),
            key_file=key_file,
            jobs=1,
        )
        if any(layout.get(key) for key in ROLES):
            assert sum(ingest(config).left_out.values()) == layout["left_out"]
        else:
            with pytest.raises(DataError, match=f"DATA-01.*{next(iter(layout['quarantined']))}"):
                ingest(config)
        registry = Registry.open(tmp_path / "reg")
        quarantined = registry.stats()["quarantined"]
        assert {reason.split()[0]: n for reason, n in quarantined.items()} == layout.get(
            "quarantined", {}
        )
        rows = registry.volumes()
        for key, role in ROLES.items():
            assert sum(row.role == role for row in rows) == layout.get(key, 0), key
        images = [row for row in rows if row.role == "image"]
        assert len({row.subject_id for row in rows}) == layout["subjects"]
        for what in ("region", "sequence"):
            if expected := layout.get(f"{what}s"):
                found = [getattr(row, what) for row in images]
                assert {value: found.count(value) for value in set(found)} == expected
        for row in rows:
            assert row.licence == card.licence
            if row.role == "label":
                patient = registry.volumes("role = 'image' AND subject_id = ?", [row.subject_id])
                whole = [image for image in patient if row in registry.labels_of(image)]
                parts = [image for image in patient if row in registry.partial_labels_of(image)]
                assert whole or parts, "a label map without its image"
                assert json.loads(row.facts)["LabelNames"]
        splits = dict(registry.rows("SELECT subject_id, split FROM splits"))
        for patient, split in layout.get("splits", {}).items():
            namespace = card.subject_namespace or name
            subject = pseudonym(bytes.fromhex(KEY), "subject", namespace, str(patient))
            expected = split_of(bytes.fromhex(KEY), subject) if split == "hashed" else split
            assert splits[subject] == expected, patient


CARD = """
name: {name}
title: Scans
licence: {licence}
agreement: {{name: none}}
opened: nothing
files: [{{include: ["*.nii.gz"], region: knee}}]
{more}
"""


@pytest.fixture
def write(tmp_path: Path):
    def card(name: str = "mine", licence: str = "CC-BY-4.0", more: str = "") -> Path:
        path = tmp_path / "card.yaml"
        path.write_text(CARD.format(name=name, licence=licence, more=more))
        return path

    return card


class TestOwnCards:
    def test_ingest(self, write, tmp_path: Path, save) -> None:
        terms = "terms: {permits: [weights], forbids: [redistribution], requires: [attribution]}"
        card = write(licence="LicenseRef-DUA", more=f"{terms}\ncitation: Somebody, 2020")
        save(tmp_path / "data" / "patient1" / "knee_T1.nii.gz", "knee", 1)
        words = ["data", "ingest", "--sources", str(card), "--root", str(tmp_path / "data")]
        assert main([*words, "--registry", str(tmp_path / "reg"), "--jobs", "1"]) == 0
        source = registered_sources(Registry.open(tmp_path / "reg"))["mine"]
        assert source.facts.citation == "Somebody, 2020"
        assert (source.terms.weights, source.terms.redistribution) == ("yes", "no")

    def test_two_cards_of_one_name(self, write) -> None:
        with pytest.raises(ConfigError, match=r"CONFIG-05.*two cards of the name 'ixi'.*licence"):
            load_card(write("ixi", "MIT"))
        more = "subject_namespace: elsewhere"
        with pytest.raises(ConfigError, match=r"CONFIG-05.*subject_namespace"):
            load_card(write("ixi", "CC-BY-SA-3.0", more))
        assert load_card(write("ixi", "CC-BY-SA-3.0")).name == "ixi"

    def test_two_cards_in_one_list(self, tmp_path: Path, save, run_ingest) -> None:
        save(tmp_path / "in" / "patient1" / "knee_T1.nii.gz", "knee", 1)
        one = Source(name="a", licence="MIT", root=str(tmp_path / "in"), card=CardFacts(title="A"))
        other = dataclasses.replace(one, card=CardFacts(title="B"))
        with pytest.raises(ConfigError, match=r"CONFIG-05.*'a' has card"):
            run_ingest(tmp_path / "reg", sources=(one, other))

    def test_a_card_conflicts_with_the_registry(self, write, tmp_path: Path, save, run_ingest):
        save(tmp_path / "in" / "patient1" / "knee_T1.nii.gz", "knee", 1)
        run_ingest(tmp_path / "reg", sources=load_sources(write(), tmp_path / "in"))
        with pytest.raises(ConfigError, match=r"CONFIG-05.*'mine' has licence 'CC-BY-4.0' so far"):
            run_ingest(
                tmp_path / "reg", sources=load_sources(write(licence="MIT"), tmp_path / "in")
            )

    def test_licences_must_be_known_or_told(self, write) -> None:
        with pytest.raises(ConfigError, match=r"LicenseRef-DUA is no SPDX id.*terms"):
            load_card(write(licence="LicenseRef-DUA"))
        with pytest.raises(ConfigError, match=r"No-Such-1.0 is in no list"):
            load_card(write(licence="No-Such-1.0"))
        with pytest.raises(ConfigError, match="is no SPDX id"):
            load_card(write(licence="CC BY 4.0"))
        assert not load_card(write(licence="unknown")).permitted.known

    def test_all_problems_at_once(self, write) -> None:
        more = "teir: open\nterms: {permits: [profit]}"
        with pytest.raises(ConfigError, match=r"(?s)teir.*tier.*profit|profit.*teir.*tier"):
            load_card(write(more=more))
        with pytest.raises(ConfigError, match="both yes and no"):
            load_card(write(more="terms: {permits: [weights], forbids: [weights]}"))

    def test_wrong_patterns(self, write) -> None:
        path = write()
        path.write_text(path.read_text().replace("region: knee", "splits: {test: '('}"))
        with pytest.raises(ConfigError, match=r"splits.test '\(' is no regular expression"):
            load_card(path)

    def test_a_card_needs_a_root_and_a_list_has_none(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"CONFIG-05.*--root"):
            load_sources("ixi")
        with pytest.raises(ConfigError, match=r"CONFIG-02.*no source card 'embedded'"):
            load_sources("embedded", tmp_path)
        with pytest.raises(ConfigError, match=r"CONFIG-02.*'ixi'"):
            load_card("ixj")


@pytest.mark.parametrize(
    ("one", "path", "other", "same"),
    [
        ("tcga_lihc", "a/TCGA-BC-4073/1/MR_3/1.dcm", "liver_hcc_seg", "TCGA-BC-4073/2/art.nii.gz"),
        ("ispy2", "a/ISPY2-102212/1/MR_2/1.dcm", "acrin_6698", "a/ACRIN-6698-102212/1/MR_2/1.dcm"),
    ],
)  # fmt: skip
def test_a_patient_of_two_data_sets_is_one(one: str, path: str, other: str, same: str) -> None:
    subjects = [
        load_sources(name, "/data")[0].subject_of(f"data/{below}", {})
        for name, below in ((one, path), (other, same))
    ]
    assert subjects[0] == subjects[1]


class TestShown:
    def test_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["data", "sources"]) == 0
        told = capsys.readouterr().out
        assert all(name in told for name in card_names())
        assert main(["data", "sources", "--json"]) == 0
        cards = json.loads(capsys.readouterr().out)
        assert [card["name"] for card in cards] == card_names()
        assert {card["tier"] for card in cards} <= {"open", "registered", "restricted"}

    def test_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["data", "sources", "acdc"]) == 0
        told = capsys.readouterr().out
        assert "commercial: no" in told
        assert "1 right ventricle" in told
        assert main(["data", "sources", "acdc", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["permitted"]["commercial"] == "no"
        assert main(["data", "sources", "acdd"]) == 2


class TestHonest:
    @pytest.mark.parametrize("name", card_names())
    def test_says_what_was_not_checked(self, name: str) -> None:
        card = load_card(name)
        assert card.name == name
        assert card.unverified
        assert card.citation != "not stated"
        assert card.doi == "not checked" or re.fullmatch(r"10\.[0-9]{4,5}/\S+", card.doi)
        if card.permitted == Terms():
            assert any("licence" in line or "terms" in line for line in card.unverified)
