"""Labelled data sets in public layouts: read strictly, to a registry by one command."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from core_mri.__main__ import main
from core_mri.errors import ConfigError, CoreMRIError
from data_registry import Registry
from data_registry.deidentify.identifiers import pseudonym
from data_registry.layouts.as_sources import Choices
from data_registry.layouts.detect import Asked, read_layout, sources_in
from data_registry.schema import VolumeRow
from tests.data_registry import labelled_folders as folders
from tests.data_registry.conftest import KEY
from tests.data_registry.labelled_folders import image_array, mask_array, save, save_json


@pytest.fixture
def take(tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]):
    """Run the command of a user; the registry, and what was printed."""

    def run(folder: Path, *words: str, licence: str = "CC-BY-SA-4.0") -> tuple[Registry, str]:
        registry = tmp_path / "reg"
        given = ["--source", "set", "--licence", licence, "--key-file", str(key_file)]
        code = main(
            ["data", "ingest", str(folder), "--registry", str(registry), *given, "--jobs", "1",
             *words]
        )  # fmt: skip
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return Registry.open(registry), printed.out

    return run


def refused(folder: Path, **asked: object) -> CoreMRIError:
    """The error of a folder whose list does not hold."""
    choices = Choices(name="set", licence="CC-BY-SA-4.0")
    with pytest.raises(CoreMRIError) as caught:
        sources_in(folder, Asked(**asked), choices)  # type: ignore[arg-type]
    assert caught.value.fix, caught.value
    return caught.value


def patient(name: str) -> str:
    return pseudonym(bytes.fromhex(KEY), "subject", "set", name)


def facts(row: VolumeRow) -> dict[str, object]:
    return dict(json.loads(row.facts))


class TestNnunet:
    @pytest.mark.parametrize("version", [1, 2])
    def test_cases_channels_labels(self, version: int, take, tmp_path: Path) -> None:
        folders.nnunet(tmp_path / "d", channels=("T1", "FLAIR"), version=version, tests=2)
        registry, out = take(tmp_path / "d")
        assert "layout nnunet: 8 cases of 8 patients, 6 label maps" in out
        images = registry.volumes("role = 'image'")
        labels = registry.volumes("role = 'label'")
        assert (len(images), len(labels)) == (16, 6)
        assert {facts(row)["LabelNames"] for row in labels} == {"1=femur;2=tibia"}
        assert {facts(row)["LabelValues"] for row in labels} == {"1;2"}
        for label in labels:
            pair = registry.images_of(label)
            assert sorted(str(facts(row)["Channel"]) for row in pair) == ["FLAIR", "T1"]
            assert {row.subject_id for row in pair} == {label.subject_id}
        assert Counter(row.sequence for row in images) == {"T1": 8, "FLAIR": 8}

    def test_pixels_are_those_of_the_files(self, take, tmp_path: Path) -> None:
        folders.nnunet(tmp_path / "d", channels=("T1", "T2"), cases=2)
        registry, _ = take(tmp_path / "d")
        for row in registry.volumes("role = 'image' AND sequence = 'T2'"):
            stored = registry.read(row).array
            assert any(
                np.array_equal(np.sort(stored, None), np.sort(image_array(seed), None))
                for seed in (2, 4)
            )

    def test_unlabelled_tests_leave_the_split_to_the_hash(self, take, tmp_path: Path) -> None:
        folders.nnunet(tmp_path / "d", cases=24, tests=2)
        registry, out = take(tmp_path / "d")
        splits = dict(registry.rows("SELECT subject_id, split FROM splits"))
        assert {splits[patient(f"knee_{n}")] for n in (100, 101)} == {"test"}
        assert {splits[patient(f"knee_{n:03d}")] for n in range(24)} == {"train", "val", "test"}
        assert "no labelled test cases" in out

    def test_labelled_tests_are_the_only_ones(self, take, tmp_path: Path) -> None:
        folders.nnunet(tmp_path / "d", cases=24, tests=2, labelled_tests=True)
        registry, _ = take(tmp_path / "d")
        splits = dict(registry.rows("SELECT subject_id, split FROM splits"))
        assert {splits[patient(f"knee_{n:03d}")] for n in range(24)} == {"train", "val"}
        assert sum(split == "test" for split in splits.values()) == 2

    def test_again_adds_nothing(self, take, tmp_path: Path) -> None:
        folders.nnunet(tmp_path / "d")
        first = take(tmp_path / "d")[0].volumes()
        assert take(tmp_path / "d")[0].volumes() == first

    def test_patients_of_several_cases(self, take, tmp_path: Path) -> None:
        folders.nnunet(tmp_path / "d", cases=12)
        registry, _ = take(tmp_path / "d", "--subject", "knee_0(?P<subject>[0-9])")
        assert registry.stats()["subjects"] == 2
        choices = Choices(name="set", licence="MIT", subject="knee_00(?P<subject>[0-9])")
        with pytest.raises(ConfigError, match="finds nobody in labelsTr/knee_010"):
            sources_in(tmp_path / "d", Asked(), choices)

    def test_regions(self, tmp_path: Path) -> None:
        content = folders.nnunet(tmp_path / "d", values=(1, 2, 3))
        labels = {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3}
        save_json(tmp_path / "d" / "dataset.json", {**content, "labels": labels})
        data = read_layout(tmp_path / "d", Asked())
        assert data is not None
        assert data.label_regions == {"whole tumor": (1, 2, 3), "core": (2, 3)}
        assert data.label_names == {1: "label 1", 2: "label 2", 3: "enhancing"}

    def test_dataset_key(self, tmp_path: Path) -> None:
        content = folders.nnunet(tmp_path / "d", cases=1)
        entry = {"images": ["imagesTr/knee_000_0000.nii.gz"], "label": "labelsTr/knee_000.nii.gz"}
        save_json(tmp_path / "d" / "dataset.json", {**content, "dataset": {"one": entry}})
        data = read_layout(tmp_path / "d", Asked())
        assert data is not None
        assert [case.name for case in data.cases] == ["one"]


class TestDecathlon:
    def test_frames_become_named_channels(self, take, tmp_path: Path) -> None:
        folders.decathlon(tmp_path / "d")
        registry, out = take(tmp_path / "d")
        assert "layout msd: 6 cases" in out
        images = registry.volumes("role = 'image'")
        assert Counter(row.sequence for row in images) == {
            "FLAIR": 6, "T1": 6, "T1 contrast": 6, "T2": 6,
        }  # fmt: skip
        assert {facts(row)["Channel"] for row in images} == {"FLAIR", "T1w", "t1gd", "T2w"}
        for label in registry.volumes("role = 'label'"):
            assert len(registry.images_of(label)) == 4
        assert registry.stats()["quarantined"] == {}

    def test_licence_that_contradicts(self, tmp_path: Path) -> None:
        folders.decathlon(tmp_path / "d")
        with pytest.raises(ConfigError, match=r"CONFIG-05.*CC-BY-SA-4.0, and MIT was given"):
            sources_in(tmp_path / "d", Asked(), Choices(name="set", licence="MIT"))

    def test_wrong_number_of_frames(self, tmp_path: Path) -> None:
        folders.decathlon(tmp_path / "d")
        save(tmp_path / "d" / "imagesTr" / "BRATS_002.nii.gz", image_array(5, 3))
        error = refused(tmp_path / "d")
        assert error.code == "DATA-29"
        assert "BRATS_002.nii.gz: 3 frame(s)" in error.message


class TestMonai:
    def test_lists_and_shared_label_maps(self, take, tmp_path: Path) -> None:
        folders.monai(tmp_path / "d")
        words = ("--subject", r"(?P<subject>P[0-9]+)_", "--label-names", "1=SA", "2=RF")
        registry, out = take(tmp_path / "d", *words)
        assert "layout monai: 8 cases of 7 patients, 7 label maps" in out
        splits = dict(registry.rows("SELECT subject_id, split FROM splits"))
        assert Counter(splits.values()) == {"train": 5, "val": 1, "test": 1}
        (shared,) = registry.volumes("role = 'label' AND subject_id = ?", [patient("P00")])
        assert len(registry.images_of(shared)) == 2
        assert facts(shared)["LabelNames"] == "1=SA;2=RF"

    @pytest.mark.parametrize(("tests", "kept_out"), [(True, "val"), (False, "test")])
    def test_a_fold_is_kept_out(self, tests: bool, kept_out: str, take, tmp_path: Path) -> None:
        folders.monai(tmp_path / "d", folds=True, tests=tests)
        registry, _ = take(tmp_path / "d", "--subject", r"(?P<subject>P[0-9]+)_", "--fold", "2")
        splits = dict(registry.rows("SELECT subject_id, split FROM splits"))
        assert {splits[patient(name)] for name in ("P01", "P04")} == {kept_out}
        others = {splits[patient(f"P{n:02d}")] for n in (0, 2, 3, 5)}
        assert others <= ({"train"} if tests else {"train", "val"})

    def test_no_such_fold(self, tmp_path: Path) -> None:
        folders.monai(tmp_path / "d", folds=True)
        folders.nnunet(tmp_path / "e")
        for name, told in (("d", "it has 0, 1, 2"), ("e", "it has none")):
            choices = Choices(name="set", licence="MIT", fold=7)
            with pytest.raises(ConfigError, match=f"no fold 7; {told}"):
                sources_in(tmp_path / name, Asked(), choices)

    def test_several_lists_must_be_told_apart(self, tmp_path: Path) -> None:
        content = folders.monai(tmp_path / "d")
        save_json(tmp_path / "d" / "other.json", content)
        assert "list.json, other.json" in refused(tmp_path / "d").message
        assert read_layout(tmp_path / "d" / "other.json", Asked()) is not None

    def test_mixed_channels(self, tmp_path: Path) -> None:
        content = folders.monai(tmp_path / "d")
        entries = content["training"]
        assert isinstance(entries, list)
        save(tmp_path / "d" / "Fat" / "extra.nii.gz", image_array(77))
        entries[2]["image"] = [entries[2]["image"], "Fat/extra.nii.gz"]
        save_json(tmp_path / "d" / "list.json", content)
        error = refused(tmp_path / "d")
        assert (error.code, "mixed channels" in error.message) == ("DATA-29", True)
        assert "P01_1_fat" in error.message


class TestPictures:
    @pytest.mark.parametrize("separator", [",", " ", "\t", ""])
    def test_lists(self, separator: str, take, tmp_path: Path) -> None:
        folders.mri_core_png(tmp_path / "d", separator=separator)
        registry, out = take(tmp_path / "d", "--label-names", "1=muscle")
        assert "layout mri-core-png: 12 cases of 6 patients" in out
        assert "(?P<subject>[^-]+-[^-]+)-" in out
        rows = registry.volumes()
        assert len(rows) == 24
        assert all(facts(row)["UnknownSpacing"] is True for row in rows)
        assert {row.num_slices for row in rows} == {1}
        splits = dict(registry.rows("SELECT subject_id, split FROM splits"))
        assert Counter(splits.values()) == {"train": 2, "val": 2, "test": 2}
        for label in registry.volumes("role = 'label'"):
            assert len(registry.images_of(label)) == 1

    def test_given_spacing_is_no_guess(self, take, tmp_path: Path) -> None:
        folders.mri_core_png(tmp_path / "d")
        registry, _ = take(tmp_path / "d", "--spacing-mm", "0.8", "0.8", "5")
        rows = registry.volumes()
        assert not any("UnknownSpacing" in facts(row) for row in rows)
        assert {row.spacing_mm for row in rows} == {(5.0, 0.8, 0.8)}

    def test_slices_of_a_volume_stay_together(self, take, tmp_path: Path) -> None:
        for volume in range(4):
            for z in range(3):
                name = f"image_{volume:03d}.ni_z{z:03d}.png"
                array = image_array(10 * volume + z)[:, :, 0].T.clip(0, 255).astype(np.uint8)
                folders.picture(tmp_path / "d" / "images" / name, array)
                folders.picture(tmp_path / "d" / "masks" / name, mask_array()[:, :, 1].T)
                with (tmp_path / "d" / "train.txt").open("a") as file:
                    file.write(f"images/{name}\tmasks/{name}\n")
        registry, out = take(tmp_path / "d")
        assert "12 cases of 4 patients" in out
        assert registry.stats()["subjects"] == 4

    def test_16_bit_is_kept(self, take, tmp_path: Path) -> None:
        folders.mri_core_png(tmp_path / "d")
        deep = (image_array(3)[:, :, 0].T.astype(np.uint16) + 1) * 100
        folders.picture(tmp_path / "d" / "images" / "Thigh-000-00.png", deep)
        registry, _ = take(tmp_path / "d")
        (row,) = [row for row in registry.volumes() if row.window_high > 10_000]
        assert np.array_equal(registry.read(row).array[0], deep)

    def test_color(self, tmp_path: Path) -> None:
        folders.mri_core_png(tmp_path / "d")
        color = np.zeros((14, 16, 3), dtype=np.uint8)
        color[4:, :, 0] = 200
        for folder in ("images", "masks"):
            folders.mri_core_png(tmp_path / "d")
            folders.picture(tmp_path / "d" / folder / "Thigh-002-01.png", color)
            with pytest.raises(CoreMRIError, match=r"DATA-03.*Thigh-002-01.png: a color picture"):
                sources_in(tmp_path / "d", Asked(), Choices(name="set", licence="MIT"))

    def test_a_patient_in_two_lists(self, tmp_path: Path) -> None:
        folders.mri_core_png(tmp_path / "d")
        with (tmp_path / "d" / "test.txt").open("a") as file:
            file.write("Thigh-000-01.png\n")
        train = (tmp_path / "d" / "train.txt").read_text().splitlines()
        kept = [line for line in train if "Thigh-000-01" not in line]
        (tmp_path / "d" / "train.txt").write_text("\n".join(kept))
        error = refused(tmp_path / "d")
        assert error.code == "DATA-27"
        assert "'Thigh-000' is in two splits" in error.message
        assert "Thigh-000-01.png in test" in error.message


class TestPairs:
    def test_pattern(self, take, tmp_path: Path) -> None:
        for number in range(3):
            save(tmp_path / "d" / f"c{number}" / f"c{number}_t1.nii.gz", image_array(number))
            save(tmp_path / "d" / f"c{number}" / f"c{number}_seg.nii.gz", mask_array())
        registry, out = take(tmp_path / "d", "--pairs", "*/*_t1.nii.gz=*/*_seg.nii.gz")
        assert "layout pairs: 3 cases of 3 patients" in out
        assert "values in the label maps: 1." in out
        assert len(registry.volumes("role = 'label'")) == 3

    def test_several_sequences(self, take, tmp_path: Path) -> None:
        for number in range(2):
            for name in ("t1", "flair"):
                seed = number + (20 if name == "t1" else 0)
                save(tmp_path / "d" / f"c{number}" / f"{name}.nii.gz", image_array(seed))
            save(tmp_path / "d" / f"c{number}" / "seg.nii.gz", mask_array())
        pattern = "t1:*/t1.nii.gz,flair:*/flair.nii.gz=*/seg.nii.gz"
        registry, _ = take(tmp_path / "d", "--pairs", pattern)
        assert {row.sequence for row in registry.volumes("role = 'image'")} == {"T1", "FLAIR"}
        (tmp_path / "d" / "c1" / "flair.nii.gz").unlink()
        error = refused(tmp_path / "d", pairs=pattern)
        assert error.code == "DATA-29"
        assert "case 'c1' has no sequence 'flair', expected at c1/flair.nii.gz" in error.message

    def test_missing_mask(self, tmp_path: Path) -> None:
        for number in range(2):
            save(tmp_path / "d" / f"a_{number}.nii.gz", image_array(number))
        save(tmp_path / "d" / "m_1.nii.gz", mask_array())
        error = refused(tmp_path / "d", pairs="a_*.nii.gz=m_*.nii.gz")
        assert (error.code, "m_0.nii.gz" in error.message) == ("DATA-27", True)

    @pytest.mark.parametrize("pattern", ["a.nii=b.nii", "*.nii", "*a.nii,*b.nii=*c.nii", ""])
    def test_nonsense(self, pattern: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError):
            read_layout(tmp_path, Asked(layout="pairs", pairs=pattern))


def _json(change: object):
    def do(root: Path, content: dict[str, object]) -> None:
        save_json(root / "dataset.json", {**content, **change})  # type: ignore[dict-item]

    return do


def _text(text: str):
    return lambda root, _: save_json(root / "dataset.json", text)


def _train(name: str):
    return {"training": [{"image": name, "label": "./labelsTr/knee_000.nii.gz"}]}


BAD = {
    "broken JSON": (_text("{"), "DATA-27", "dataset.json: is no JSON"),
    "a list": (_text("[]"), "DATA-27", "expected an object"),
    "no channel names": (_json({"channel_names": {}}), "DATA-27", "channel_names must be"),
    "channel numbers": (_json({"channel_names": {"1": "T1"}}), "DATA-27", "numbered 0, 1, 2"),
    "a name twice": (_json({"channel_names": {"0": "T1", "1": "t1"}}), "DATA-27", "name twice"),
    "no labels": (_json({"labels": {"background": 0}}), "DATA-27", "nothing but background"),
    "labels of text": (_json({"labels": {"a": "b"}}), "DATA-27", "must be a whole number"),
    "one value twice": (_json({"labels": {"a": 1, "b": 1}}), "DATA-27", "are both 1"),
    "odd names": (_json({"labels": {"a;b=2": 1}}), "DATA-27", "is no name"),
    "number of cases": (_json({"numTraining": 7}), "DATA-27", "numTraining is 7"),
    "a listed case is gone": (_json(_train("imagesTr/x.nii.gz")), "DATA-27", "lists x"),
    "channel missing": (
        lambda root, _: (root / "imagesTr" / "knee_002_0001.nii.gz").unlink(),
        "DATA-29",
        "'knee_002' lacks knee_002_0001.nii.gz, its sequence 'T2'",
    ),
    "one channel too many": (
        lambda root, _: save(root / "imagesTr" / "knee_001_0002.nii.gz", image_array(1)),
        "DATA-29",
        "knee_001_0002.nii.gz",
    ),
    "mask missing": (
        lambda root, _: (root / "labelsTr" / "knee_003.nii.gz").unlink(),
        "DATA-27",
        "no label map for knee_003.nii.gz",
    ),
    "mask on another grid": (
        lambda root, _: save(
            root / "labelsTr" / "knee_001.nii.gz", mask_array((1, 2)), np.diag([1.5, 1.25, 4.2, 1])
        ),
        "GEOMETRY-03",
        "knee_001.nii.gz lies on another grid",
    ),
    "mask of another size": (
        lambda root, _: save(root / "labelsTr" / "knee_001.nii.gz", mask_array((1, 2))[1:]),
        "GEOMETRY-03",
        "knee_001.nii.gz lies on another grid (15x14x4)",
    ),
    "channel on another grid": (
        lambda root, _: save(root / "imagesTr" / "knee_001_0001.nii.gz", image_array(1)[:, 1:]),
        "GEOMETRY-03",
        "knee_001_0001.nii.gz lies on another grid",
    ),
    "foreign value": (
        lambda root, _: save(root / "labelsTr" / "knee_004.nii.gz", mask_array((1, 7))),
        "DATA-06",
        "knee_004.nii.gz: holds [7], allowed are 0 and 1 femur, 2 tibia",
    ),
}


class TestBadInput:
    @pytest.mark.parametrize("name", BAD)
    def test_is_told_with_file_and_fix(self, name: str, tmp_path: Path) -> None:
        spoil, code, message = BAD[name]
        content = folders.nnunet(tmp_path / "d", cases=5, channels=("T1", "T2"))
        spoil(tmp_path / "d", content)  # type: ignore[operator]
        choices = Choices(name="set", licence="MIT")
        with pytest.raises(CoreMRIError) as caught:
            sources_in(tmp_path / "d", Asked(), choices)
        assert caught.value.code == code
        assert message in caught.value.message

    def test_nothing_is_written(self, tmp_path: Path) -> None:
        folders.nnunet(tmp_path / "d")
        (tmp_path / "d" / "labelsTr" / "knee_003.nii.gz").unlink()
        words = ["data", "ingest", str(tmp_path / "d"), "--registry", str(tmp_path / "reg")]
        assert main([*words, "--source", "set", "--licence", "MIT"]) == 1
        assert not (tmp_path / "reg").exists()

    @pytest.mark.parametrize("path", ["../outside.nii.gz", "/etc/passwd", "a/../../b.nii.gz", 7])
    def test_paths_out_of_the_folder(self, path: object, tmp_path: Path) -> None:
        content = folders.decathlon(tmp_path / "d")
        save(tmp_path / "outside.nii.gz", image_array(1))
        training = [{"image": path, "label": "./labelsTr/BRATS_001.nii.gz"}]
        save_json(tmp_path / "d" / "dataset.json", {**content, "training": training})
        with pytest.raises(CoreMRIError, match=r"DATA-27.*(leads out of|expected the path)"):
            sources_in(tmp_path / "d", Asked(layout="msd"), Choices(name="set", licence="MIT"))

    def test_missing_file(self, tmp_path: Path) -> None:
        folders.decathlon(tmp_path / "d")
        (tmp_path / "d" / "labelsTr" / "BRATS_003.nii.gz").unlink()
        assert "BRATS_003.nii.gz" in refused(tmp_path / "d").message

    def test_duplicate_case(self, tmp_path: Path) -> None:
        content = folders.decathlon(tmp_path / "d")
        entries = content["training"]
        assert isinstance(entries, list)
        changed = {"training": [*entries, entries[0]], "numTraining": len(entries) + 1}
        save_json(tmp_path / "d" / "dataset.json", {**content, **changed})
        assert (
            "image 'imagesTr/BRATS_001.nii.gz' is listed more than"
            in refused(tmp_path / "d").message
        )

    def test_all_masks_are_empty(self, tmp_path: Path) -> None:
        folders.nnunet(tmp_path / "d", values=(0,))
        error = refused(tmp_path / "d")
        assert (error.code, "all 6 label maps are empty" in error.message) == ("DATA-27", True)

    def test_a_structure_that_no_map_shows_is_told(self, take, tmp_path: Path) -> None:
        folders.nnunet(tmp_path / "d", values=(1,))
        _, out = take(tmp_path / "d")
        assert "no label map shows tibia" in out

    def test_options_of_other_layouts(self, tmp_path: Path) -> None:
        folders.nnunet(tmp_path / "d")
        with pytest.raises(ConfigError, match="names the labels itself"):
            read_layout(tmp_path / "d", Asked(label_names={1: "x"}))
        with pytest.raises(ConfigError, match="--pairs belongs to"):
            read_layout(tmp_path / "d", Asked(layout="msd", pairs="a*=b*"))


class TestDetection:
    def test_plain_folders_are_none(self, tmp_path: Path) -> None:
        save(tmp_path / "d" / "patient1_T1.nii.gz", image_array(1))
        save_json(tmp_path / "d" / "notes.json", {"a": 1})
        assert read_layout(tmp_path / "d", Asked()) is None
        folders.nnunet(tmp_path / "e")
        assert read_layout(tmp_path / "e", Asked(layout="none")) is None

    def test_version_1_is_no_decathlon(self, tmp_path: Path) -> None:
        folders.nnunet(tmp_path / "d", version=1)
        folders.decathlon(tmp_path / "e")
        found = [read_layout(tmp_path / name, Asked()) for name in "de"]
        assert [data.layout for data in found if data] == ["nnunet", "msd"]
