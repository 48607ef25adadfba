"""`core-mri data label`: labels follow the rules, old ones stay, an index needs no images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import MappingProxyType

import pytest

from core_mri.errors import ConfigError, DataError
from core_mri.volume import Volume
from data_registry import Registry, labels
from data_registry.cli import main
from data_registry.label_index import index_file, label_index
from data_registry.label_report import report_labels
from data_registry.relabel import past_votes, relabel


@pytest.fixture
def own(registry: Registry, tmp_path: Path) -> Registry:
    shutil.copytree(registry.path, tmp_path / "own")
    return Registry.open(tmp_path / "own")


def seen(volume: Volume) -> dict[str, tuple[str, float]]:
    """A classifier that takes every image for a hip."""
    assert volume.kind == "image"
    return {"region": ("hip", 0.999)}


class TestRelabel:
    def test_same_rules_change_nothing(self, own: Registry) -> None:
        commits = sorted((own.path / "commits").iterdir())
        assert relabel(own) == {}
        assert sorted((own.path / "commits").iterdir()) == commits

    def test_new_rules_are_one_more_commit(
        self, own: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {row.volume_id: row for row in own.volumes()}
        monkeypatch.setattr(
            labels, "find_region",
            lambda texts: "pelvis" if "prostate" in " ".join(texts) else "unknown",
        )  # fmt: skip
        asked = relabel(own, write=False)
        assert own.volumes() == list(before.values())
        assert relabel(own) == asked == {("region", "prostate", "pelvis"): 1}
        after = {row.volume_id: row for row in own.volumes()}
        changed = [v for v in before if before[v] != after[v]]
        assert len(changed) == 1
        assert after[changed[0]].region == "pelvis"
        assert own.stats()["by_region"]["pelvis"] == 1
        monkeypatch.undo()
        assert relabel(own) == {("region", "pelvis", "prostate"): 1}
        assert {row.volume_id: row for row in own.volumes()} == before

    def test_paths_are_gone_but_what_they_said_stays(self, own: Registry) -> None:
        row = own.volumes("region = 'knee' AND role = 'image'")[0]
        assert past_votes(row)["region"] == {"path": "knee"}
        assert "patient" not in row.votes

    def test_a_classifier_looks_at_images(self, own: Registry) -> None:
        changes = relabel(own, classifier=seen)
        assert sum(n for (kind, _, new), n in changes.items() if new == "hip") == 8
        row = own.volumes("role = 'image' AND region_by = 'image'")[0]
        assert json.loads(row.votes)["region"]["image"] == "hip"
        assert not own.volumes("role = 'label' AND region = 'hip'")

    def test_slices_are_read_as_before(self, own: Registry) -> None:
        relabel(own, classifier=seen)
        assert own.sql("SELECT count(*) FROM slices").to_pylist() == [
            {"count_star()": sum(row.num_slices for row in own.volumes())}
        ]

    def test_an_empty_registry(self, tmp_path: Path) -> None:
        assert relabel(Registry.create(tmp_path / "empty")) == {}

    def test_a_declared_region_that_no_vocabulary_has(
        self, own: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def past(row: object) -> labels.Votes:
            return {kind: {"list": "tail"} if kind == "region" else {} for kind in labels.LABELS}

        monkeypatch.setattr("data_registry.relabel.past_votes", past)
        with pytest.raises(ConfigError, match="'tail'"):
            relabel(own)


class TestCommand:
    def test_report_of_a_registry(self, own: Registry, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["label", "--registry", str(own.path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        region = found["labels"]["region"]
        assert found["changes"] == []
        assert region["total"] == 8
        assert region["by_label"] == {"brain": 4, "knee": 3, "prostate": 1}
        assert main(["label", "--registry", str(own.path), "--relabel"]) == 0
        assert "are those of the rules" in capsys.readouterr().out

    def test_an_empty_registry(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Registry.create(tmp_path / "empty")
        assert main(["label", "--registry", str(tmp_path / "empty")]) == 0
        assert "Labels of 0 volumes" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "words", [[], ["--index", "idc", "--relabel"], ["--index", "a.csv", "--registry", "b"]]
    )
    def test_one_of_registry_and_index(self, words: list[str]) -> None:
        with pytest.raises(ConfigError, match="either --registry DIR"):
            main(["label", *words])

    def test_no_such_index(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no index at"):
            main(["label", "--index", str(tmp_path / "none.csv")])


ROWS = (
    "Modality,BodyPartExamined,SeriesDescription,StudyDescription\n"
    "MR,TSPINE,ISPY2: pre,ISPY2_MRI_T0\n"
    "MR,,t2_tse_tra,MR PROSTATE WO+W CONTRAST\n"
    "MR,,t2_tse_tra,MR PROSTATE WO+W CONTRAST\n"
    "MR,KNEE,,\n"
    'MR,"\'; DROP TABLE volumes; --",\u8111\u90e8 \u202e,\u0000\n'
    "CT,HEAD,,\n"
)


class TestIndex:
    def test_votes_of_each_series(self, tmp_path: Path) -> None:
        path = tmp_path / "index.csv"
        path.write_text(ROWS, encoding="utf-8")
        found = report_labels(label_index(path))["region"]
        assert found.total == 5
        assert found.by_label == {"breast": 1, "prostate": 2, "knee": 1, "unknown": 1}
        assert found.unknown == 1
        assert found.disagreements == {("breast", "header", "thoracic spine"): 1}
        assert (found.agree["description", "study"], found.differ["header", "study"]) == (1, 1)
        assert found.spoke == {"header": 2, "description": 1, "study": 3}

    @pytest.mark.parametrize(
        ("name", "content"),
        [("a.parquet", b"PAR1 not really"), ("b.csv", b"name,size\nx,1\n"), ("c.parquet", b"")],
    )
    def test_what_is_no_index(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            list(label_index(tmp_path / name))
        assert caught.value.code == "DATA-03"

    def test_idc_needs_its_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(ConfigError, match="pip install idc-index-data"):
            index_file("idc")


def test_report_counts_a_part_as_agreement() -> None:
    nothing: dict[str, tuple[str, float]] = dict.fromkeys(labels.LABELS, ("unknown", 0.0))
    said = {"header": "abdomen", "description": "liver", "list": "kidney"}
    item = (
        {**{kind: {} for kind in labels.LABELS}, "region": said},
        MappingProxyType({**nothing, "region": ("kidney", 1.0)}),
        3,
    )
    found = report_labels([item])["region"]
    assert found.agree == {("description", "header"): 3, ("header", "list"): 3}
    assert found.differ == {("description", "list"): 3}
    assert found.disagreements == {("kidney", "description", "liver"): 3}
    assert found.confusion == {("kidney", "liver"): 3}
