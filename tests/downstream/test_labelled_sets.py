"""Public layouts to cells: sequences together, structures by name, what is refused and how."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from core_mri import Predictor, load_model, read_volume
from core_mri.errors import ConfigError, DataError, GeometryError
from data_registry import IngestConfig, Registry, Source, ingest
from data_registry.catalogue import first_slice
from data_registry.layouts.as_sources import Choices
from data_registry.layouts.detect import Asked, sources_in
from data_registry.source_cards import load_card
from downstream.cohort import load_cohort
from downstream.config import SuiteConfig, Task
from downstream.evaluation import draws
from downstream.evaluation.cells import Cell, prepare
from downstream.evaluation.suite import evaluate, finetune
from downstream.segmentation.data import Shot, name_labels, pair_labels, read_mask
from downstream.segmentation.sequences import read_channels
from downstream.segmentation.structures import named_values, values_in
from tests.data_registry import labelled_folders as folders
from tests.data_registry.fake_scans import make_folder
from tests.data_registry.labelled_folders import image_array, mask_array, save

FRACTIONS = (0.4, 0.2, 0.4)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    """Ingest a labelled folder; the registry."""

    def run(folder: Path, *, sources=(), pairs="", labels=None, subject="") -> Registry:
        path = tmp_path_factory.mktemp("registry") / "reg"
        key = path.with_name("fixed.key")
        key.write_text("5a" * 32 + "\n")
        key.chmod(0o600)
        if not sources:
            choices = Choices(name="set", licence="CC-BY-SA-4.0", subject=subject)
            sources = sources_in(folder, Asked(pairs=pairs, label_names=labels or {}), choices)
            sources = sources.sources
        Registry.create(path, fractions=FRACTIONS)
        ingest(IngestConfig(registry=path, sources=sources, key_file=key, jobs=1))
        return Registry.open(path)

    return run


@pytest.fixture(scope="module")
def knees(tmp_path_factory, ingested) -> Registry:
    """nnU-Net raw, two channels, femur and tibia."""
    folder = tmp_path_factory.mktemp("knees")
    folders.nnunet(folder, cases=10, channels=("T1", "fat fraction"))
    return ingested(folder)


@pytest.fixture(scope="module")
def brains(tmp_path_factory, ingested) -> Registry:
    """Decathlon, four frames, three values."""
    folder = tmp_path_factory.mktemp("brains")
    folders.decathlon(folder, cases=10)
    return ingested(folder)


def segmentation(**values) -> Task:
    return Task(**{"name": "t", "kind": "segmentation", **values})


def pairs_of(registry: Registry, task: Task):
    cohort = load_cohort(registry, task)
    named = name_labels(registry, cohort, task)
    return named, pair_labels(registry, cohort, named)


class TestSequences:
    @pytest.mark.parametrize(
        "wanted", [("FLAIR", "T1w", "t1gd", "T2w"), ("T2w", "flair"), ("T1", "T2")]
    )
    def test_a_case_is_one_pair_in_the_order_asked_for(self, wanted, brains):
        task = segmentation(sequences=wanted, label_names=("*",))
        _, pairs = pairs_of(brains, task)
        found = [*pairs.train, *pairs.val, *pairs.test]
        assert len(found) == 10
        for pair in found:
            for row, name in zip(pair.images, wanted, strict=True):
                channel = json.loads(row.facts)["Channel"]
                assert name.lower() in (channel.lower(), row.sequence.lower())
            channels = read_channels(brains, pair.images)
            assert channels.shape == (len(wanted), 4, 14, 16)
            assert channels.min() >= 0
            assert channels.max() <= 1
            for channel, row in zip(channels, pair.images, strict=True):
                array = brains.read(row).array.astype(np.float32)
                window = np.clip(
                    (array - row.window_low) / (row.window_high - row.window_low), 0, 1
                )
                assert np.allclose(channel, window)

    def test_channels_reach_the_slices_of_the_trainer(self, brains, micro, recipe, monkeypatch):
        task = segmentation(sequences=("T2w", "FLAIR"), label_names=("*",))
        named, pairs = pairs_of(brains, task)
        taken = {}

        def spy(*given, **_):
            taken["training"] = given[1]

        monkeypatch.setattr(draws, "Trainer", spy)
        cell = Cell(
            task=named, weights="w", against="t", fingerprint="f", scans="s", k=1, seed=0,
            recipe=recipe,
        )  # fmt: skip
        shot = Shot(pairs.train[0], (1, 2))
        draws.make_trainer(cell, micro, [shot], [], brains)
        (slices,) = taken["training"]
        assert slices.images.shape == (2, 2, 32, 32)
        single = replace(cell, task=replace(named, sequences=("FLAIR",)))
        second = replace(pairs.train[0], image=pairs.train[0].images[1], other_sequences=())
        alone = Shot(second, (1, 2))
        draws.make_trainer(single, micro, [alone], [], brains)
        assert torch.equal(slices.images[:, 1:], taken["training"][0].images)

    def test_mixed_channels(self, brains):
        with pytest.raises(ConfigError, match=r"mixed channels.*FLAIR, T1w, T2w, t1gd.*sequences"):
            pairs_of(brains, segmentation(label_names=("*",)))
        one = segmentation(where="sequence = 'FLAIR'", label_names=("*",))
        assert len(pairs_of(brains, one)[1].train) > 0

    def test_a_missing_sequence_names_case_and_sequence(self, knees):
        task = segmentation(sequences=("T1", "T2"), label_names=("*",))
        with pytest.raises(
            DataError, match=r"DATA-29.*image V\w+, patient P\w+, lacks .*'T2'; it has T1, fat fra"
        ):
            pairs_of(knees, task)

    def test_two_images_of_one_sequence(self, tmp_path, ingested):
        folder = tmp_path / "d"
        folders.nnunet(folder, cases=4, channels=("T1 in", "T1 out"))
        registry = ingested(folder)
        with pytest.raises(ConfigError, match="2 images of the sequence 'T1'"):
            pairs_of(registry, segmentation(sequences=("T1",), label_names=("*",)))
        task = segmentation(sequences=("T1 out", "t1 IN"), label_names=("*",))
        assert len(pairs_of(registry, task)[1].train[0].images) == 2

    def test_grids_must_agree(self, knees):
        _, pairs = pairs_of(knees, segmentation(sequences=("T1",), label_names=("*",)))
        first = pairs.train[0].image
        with pytest.raises(GeometryError, match=f"{first.volume_id}.*another grid"):
            read_channels(knees, (first, replace(first, rows=9)))

    def test_only_segmentation_takes_them(self):
        with pytest.raises(ConfigError, match="only segmentation"):
            Task(name="t", kind="clustering", labels={"a": 1}, sequences=("T1",))
        with pytest.raises(ConfigError, match="must differ"):
            segmentation(labels={"a": 1}, sequences=("T1", "t1"))

    def test_without_names_the_column_counts(self, registry, organs):
        """Images of plain folders: T1 and T2 of one patient on one grid."""
        _, pairs = pairs_of(registry, replace(organs, where="", sequences=("T2", "T1")))
        assert [row.sequence for row in pairs.test[0].images] == ["T2", "T1"]


class TestStructuresByName:
    def test_all_names_give_what_the_values_give(self, knees):
        by_name = segmentation(where="sequence = 'T1'", label_names=("*",))
        by_value = segmentation(where="sequence = 'T1'", labels={"femur": 1, "tibia": 2})
        named, pairs = pairs_of(knees, by_name)
        assert named.labels == {"femur": 1, "tibia": 2}
        for pair in pairs.test:
            assert np.array_equal(read_mask(knees, pair, named), read_mask(knees, pair, by_value))

    def test_tolerances_by_name(self, knees):
        task = segmentation(where="sequence = 'T1'", label_names=("*",), tolerances={"tibia": 2.0})
        assert pairs_of(knees, task)[0].tolerances == {"tibia": 2.0}
        with pytest.raises(ConfigError, match="names of labels"):
            pairs_of(knees, replace(task, tolerances={"patella": 2.0}))

    def test_one_of_many(self, brains):
        task = segmentation(
            where="sequence = 'T2'", label_names=("edema",), other_labels="background"
        )
        named, pairs = pairs_of(brains, task)
        assert named.labels == {"edema": 1}
        assert set(np.unique(read_mask(brains, pairs.test[0], named))) == {0, 1}
        with pytest.raises(DataError, match=r"DATA-06.*\[2, 3\]"):
            pairs_of(brains, replace(task, other_labels="error"))

    def test_united(self, brains):
        unite = {"tumour": ("*tumo*",), "rest": ("edema",)}
        task = segmentation(where="sequence = 'T2'", unite=unite)
        named, pairs = pairs_of(brains, task)
        assert list(named.labels) == ["tumour", "rest"]
        mask = read_mask(brains, pairs.test[0], named)
        stored = brains.read(pairs.test[0].label).array
        assert np.array_equal(mask == 1, np.isin(stored, (2, 3)))
        assert np.array_equal(mask == 2, stored == 1)
        other = replace(task, unite={"x": ("*",)})
        assert prepare(brains, task).scans != prepare(brains, other).scans

    def test_unknown_names_are_told_with_those_there_are(self, knees):
        task = segmentation(where="sequence = 'T1'", label_names=("patella",))
        with pytest.raises(ConfigError, match=r"'patella'; there are femur, tibia"):
            pairs_of(knees, task)

    def test_values_and_names_exclude_each_other(self, knees):
        task = segmentation(where="sequence = 'T1'", label_names=("*",), labels={"femur": 1})
        with pytest.raises(ConfigError, match="not both"):
            pairs_of(knees, task)

    def test_volumes_without_names(self, registry):
        with pytest.raises(ConfigError, match="have no names of structures"):
            pairs_of(registry, segmentation(where="sequence = 'T1'", label_names=("*",)))

    def test_regions(self, tmp_path, ingested):
        content = folders.nnunet(tmp_path / "d", cases=8, values=(1, 2, 3))
        labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
        folders.save_json(tmp_path / "d" / "dataset.json", {**content, "labels": labels})
        registry = ingested(tmp_path / "d")
        task = segmentation(label_names=("core",), other_labels="background")
        named, pairs = pairs_of(registry, task)
        stored = registry.read(pairs.test[0].label).array
        assert np.array_equal(read_mask(registry, pairs.test[0], named) == 1, stored >= 2)
        with pytest.raises(ConfigError, match=r"is both 'core' and 'whole'|'whole' and 'core'"):
            pairs_of(registry, segmentation(label_names=("whole", "core")))

    def test_equal_names_of_other_values(self, tmp_path, ingested):
        """Two sources: the same structure is 1 in one and 2 in the other."""
        sources = []
        for number, names in enumerate(({1: "femur", 2: "tibia"}, {1: "tibia", 2: "femur"})):
            root = tmp_path / f"s{number}"
            for case in range(6):
                save(root / "i" / f"{number}{case}.nii.gz", image_array(10 * number + case))
                save(root / "l" / f"{number}{case}.nii.gz", mask_array((1, 2)))
            choices = Choices(name=f"s{number}", licence="MIT")
            asked = Asked(pairs="i/*.nii.gz=l/*.nii.gz", label_names=names)
            sources += sources_in(root, asked, choices).sources
        registry = ingested(tmp_path, sources=tuple(sources))
        named, pairs = pairs_of(registry, segmentation(label_names=("femur", "tibia")))
        assert named.labels == {"femur": 1, "tibia": 2}
        for pair in pairs.train:
            stored = registry.read(pair.label).array
            femur = 1 if pair.label.source == "s0" else 2
            assert np.array_equal(read_mask(registry, pair, named) == 1, stored == femur)

    def test_one_file_a_structure(self, tmp_path, ingested):
        """Liver and two tumours in three files: parts of one mask, the first structure on top."""
        first = mask_array((1,))
        second = np.roll(first, 6, axis=0)
        whole = np.clip(first + second, 0, 1)
        whole[1:15, 2:12] = 1
        for case in range(8):
            root = tmp_path / f"p{case}"
            save(root / "image.nii.gz", image_array(case))
            for name, mask in (("liver", whole), ("tumor1", first), ("tumor2", second)):
                save(root / f"{name}.nii.gz", mask)
        common = {
            "name": "s", "licence": "MIT", "root": str(tmp_path), "subject": "(?P<subject>p[0-9])",
        }  # fmt: skip
        sources = (
            Source(include=("*/image.nii.gz",), **common),
            Source(include=("*/liver.nii.gz",), role="label", label_values={1: "liver"}, **common),
            Source(include=("*/tumor*",), role="label", label_values={1: "tumor"}, **common),
        )
        registry = ingested(tmp_path, sources=sources)
        task = segmentation(label_names=("tumor", "liver"), several_label_volumes="unite")
        named, pairs = pairs_of(registry, task)
        mask = read_mask(registry, pairs.test[0], named)
        expected = registry.read(pairs.test[0].image)
        assert mask.shape == expected.array.shape
        assert (mask == 1).sum() == (first + second > 0).sum()
        assert (mask > 0).sum() == (whole > 0).sum()
        with pytest.raises(ConfigError, match=r"3 different label volumes.*unite"):
            pairs_of(registry, replace(task, several_label_volumes="error"))
        alone = segmentation(label_names=("liver",))
        assert (read_mask(registry, pairs.test[0], named) > 0).any()
        assert len(pairs_of(registry, alone)[1].test[0].label_volumes) == 1


class TestRefusedBeforeAnythingRuns:
    @pytest.fixture
    def made(self, tmp_path, ingested):
        def make(values_of, cases=10):
            folders.nnunet(tmp_path / "d", cases=cases)
            for number in range(cases):
                path = tmp_path / "d" / "labelsTr" / f"knee_{number:03d}.nii.gz"
                save(path, mask_array(values_of(number)))
            return ingested(tmp_path / "d")

        return make

    def test_a_structure_that_no_training_patient_shows(self, made):
        registry = made(lambda number: (1, 2) if number == 0 else (1,))
        task = segmentation(label_names=("*",))
        with pytest.raises(DataError, match=r"DATA-09.*(train|test) split show no tibia"):
            prepare(registry, task)

    def test_all_masks_of_a_split_are_empty(self, made):
        registry = made(lambda number: (1, 2) if number == 0 else ())
        task = segmentation(label_names=("*",))
        with pytest.raises(DataError, match=r"DATA-09.*(train|test) split show no structure"):
            prepare(registry, task)

    def test_values_outside_the_list(self, made):
        registry = made(lambda _: (1, 2))
        with pytest.raises(DataError, match=r"DATA-06.*holds \[2\]"):
            prepare(registry, segmentation(labels={"femur": 1}))

    def test_one_patient(self, made):
        with pytest.raises(DataError, match=r"DATA-09.*from 1 patients"):
            prepare(made(lambda _: (1, 2), cases=1), segmentation(label_names=("*",)))


class TestWholeRuns:
    @pytest.mark.usefixtures("few_resamples")
    def test_a_cell_by_name(self, knees, weights, recipe, tmp_path):
        task = segmentation(name="knee", where="sequence = 'T1'", label_names=("*",))
        config = SuiteConfig(
            registry=knees.path, out=tmp_path / "run", weights={"micro": str(weights)},
            tasks=(task,), k=(1,), draws=1, steps=2, device="cpu",
            recipe=replace(recipe, num_validation=1),
        )  # fmt: skip
        out = evaluate(config)
        results = json.loads((out / "results.json").read_text())
        assert {cell["structure"] for cell in results["cells"]} == {"femur", "tibia"}
        assert not results["failed"]
        assert "tibia" in (out / "report.html").read_text()

    def test_two_sequences_by_name_to_a_released_model(self, knees, finetune_config):
        wanted = ("T1", "fat fraction")
        task = segmentation(name="knee", sequences=wanted, label_names=("*",))
        out = finetune(finetune_config(registry=knees.path, task=task, k=1, steps=2))
        model = load_model(out, device="cpu")
        assert tuple(model.sequences) == wanted
        assert model.labels == {1: "femur", 2: "tibia"}
        _, pairs = pairs_of(knees, task)
        volumes = [knees.read(row) for row in pairs.test[0].images]
        mask = Predictor(model).segment(volumes[0], sequences=volumes[1:])
        written = read_volume(out / "predictions" / f"{pairs.test[0].image.volume_id}.nii.gz")
        assert np.array_equal(mask.array, written.array)

    def test_named_values(self, knees):
        (row, *_) = knees.volumes("role = 'label'")
        assert named_values(row) == {"femur": (1,), "tibia": (2,)}
        task = segmentation(labels={"tibia": 2})
        assert values_in(row, task) == {"tibia": (2,)}


class TestSegmentationsWithoutEmptySlices:
    """DICOM segmentations leave out the slices where nothing is marked."""

    @pytest.fixture
    def prostates(self, tmp_path, ingested):
        files = {}
        for number in range(8):
            study = f"PCAMPMRI-{number:05d}/1.2.3.{number}"
            files[f"{study}/MR_1.2.3.1/*.dcm"] = f"dicom PCAMPMRI-{number:05d}"
            files[f"{study}/SEG_1.2.3.2/seg.dcm"] = "seg MR_1.2.3.1 Prostate Peripheral_zone"
        make_folder(tmp_path / "d", files)
        sources = load_card("qin_prostate_repeatability").sources(tmp_path / "d")
        return ingested(tmp_path / "d", sources=sources)

    def test_masks_lie_on_the_slices_of_their_image(self, prostates):
        named, pairs = pairs_of(prostates, segmentation(unite={"prostate": ("*",)}))
        found = [*pairs.train, *pairs.val, *pairs.test]
        assert len(found) == 8
        parts = 0
        for pair in found:
            mask = read_mask(prostates, pair, named)
            image = prostates.read(pair.image)
            assert mask.shape == image.array.shape
            stored = prostates.read(pair.label)
            parts += stored.array.shape != mask.shape
            marked = np.argwhere(mask)
            places = marked @ image.affine[:3, :3].T + image.affine[:3, 3]
            own = np.argwhere(stored.array)
            expected = own @ stored.affine[:3, :3].T + stored.affine[:3, 3]
            assert np.allclose(places, expected, atol=1e-2)
        assert parts > 0, "no segmentation left slices out: nothing was tested"

    def test_other_grids_are_no_parts(self, prostates):
        _, pairs = pairs_of(prostates, segmentation(unite={"prostate": ("*",)}))
        image = pairs.train[0].image
        part = replace(image, num_slices=2, affine=tuple(_moved(image.affine, 0, 2)))
        assert first_slice(part, image) == 2
        for axis, by in ((0, 0.4), (0, 4), (0, -1), (1, 1), (2, 0.5)):
            other = replace(image, num_slices=2, affine=tuple(_moved(image.affine, axis, by)))
            assert first_slice(other, image) is None


def _moved(affine, axis, by):
    """The affine of voxels that begin `by` indices further along an axis."""
    matrix = np.array(affine).reshape(4, 4)
    move = np.eye(4)
    move[axis, 3] = by
    return (matrix @ move).ravel()
