"""Promises about generated scans in a registry: counted apart, never tested on, nobody else's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from core_mri import write_volume
from core_mri.errors import ConfigError, DataError
from core_mri.models.encoder import Encoder
from core_mri.volume import Volume
from data_registry.catalogue import Registry
from data_registry.ingest import IngestConfig, ingest
from data_registry.source_files import Listed
from data_registry.source_list import Source
from downstream.cohort import load_cohort
from downstream.config import Task
from downstream.evaluation.cells import Cell, prepare
from downstream.evaluation.generated import generated_shots
from downstream.recipe import Recipe
from downstream.segmentation.data import Pairs, Shot, pair_labels
from downstream.segmentation.examples import LabelledSlices
from downstream.segmentation.train import Trainer
from tests.downstream.conftest import ingest_abdomens, write_abdomens


def add_generated(registry: Registry, folder: Path, parents: list[tuple[str, ...]], **changes):
    """A pair of noise and blocks for each entry, made from these pseudonyms."""
    listed = {"image": {}, "label": {}}
    rng = np.random.default_rng(0)
    for number, own in enumerate(parents):
        name = f"synthetic-{number}"
        (folder / name).mkdir(parents=True)
        label = np.zeros((16, 16, 4), np.uint8)
        label[4:9, 4:9] = 1 + number % 5
        image = (rng.random((16, 16, 4)) * 200 + 300 * (label > 0)).astype(np.int16)
        write_volume(Volume(image, np.eye(4)), folder / name / "image.nii.gz")
        write_volume(Volume(label, np.eye(4), kind="label"), folder / name / "label.nii.gz")
        for role in listed:
            listed[role][f"{name}/{role}.nii.gz"] = Listed(
                patient=name, case=name, generated_from=own
            )
    facts = {"name": "made", "licence": "CC0-1.0", "root": str(folder), "region": "abdomen",
             "sequence": "T1", "synthetic": True, "generated": True}  # fmt: skip
    sources = tuple(
        Source(role=role, listed=files, **(facts | changes)) for role, files in listed.items()
    )
    return ingest(
        IngestConfig(
            registry=registry.path, sources=sources, jobs=1,
            key_file=registry.path.with_name("fixed.key"),
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Ten phantoms, and generated pairs of the first, the second, and both training patients."""
    folder = tmp_path_factory.mktemp("mixed")
    write_abdomens(folder / "files", 10)
    registry = ingest_abdomens(folder / "files", folder / "registry")
    first, second, *_ = training_patients(registry)
    add_generated(registry, folder / "made", [(first,), (second,), (first, second)])
    return Registry.open(registry.path)


def training_patients(registry: Registry) -> list[str]:
    rows = registry.volumes("split = 'train' AND source = 'phantoms'")
    return sorted({row.subject_id for row in rows})


class TestRegistry:
    def test_always_in_the_train_split(self, mixed: Registry) -> None:
        made = mixed.volumes("source = 'made'")
        assert len(made) == 6
        assert {row.split for row in made} == {"train"}
        assert all(row.synthetic for row in made)

    def test_even_where_hash_and_list_say_test(self, tmp_path: Path) -> None:
        """Every patient of this registry is a test patient, but generated ones are none."""
        write_abdomens(tmp_path / "files", 2)
        registry = ingest_abdomens(tmp_path / "files", tmp_path / "registry")
        add_generated(registry, tmp_path / "made", [("S1",)] * 12)
        splits = registry.rows("SELECT DISTINCT split FROM volumes WHERE source = 'made'")
        assert list(splits) == [("train",)]

    def test_parents_are_kept(self, mixed: Registry) -> None:
        first, second, *_ = training_patients(mixed)
        found = {row.generated_from for row in mixed.volumes("source = 'made'")}
        assert found == {frozenset({first}), frozenset({second}), frozenset({first, second})}
        assert {row.generated_from for row in mixed.volumes("source = 'phantoms'")} == {None}

    def test_refused_under_the_name_of_a_test_patient(self, tmp_path: Path) -> None:
        write_abdomens(tmp_path / "files", 10)
        registry = ingest_abdomens(tmp_path / "files", tmp_path / "registry")
        tested = registry.volumes("split = 'test' AND role = 'image'")[0]
        folder = tmp_path / "made"
        voxels = registry.read(tested)
        (folder / "a").mkdir(parents=True)
        write_volume(Volume(voxels.array, voxels.affine), folder / "a" / "image.nii.gz")
        source = Source(
            name="made", licence="CC0-1.0", root=str(folder), synthetic=True, generated=True,
            region="abdomen",
        )  # fmt: skip
        config = IngestConfig(
            registry=registry.path, sources=(source,), jobs=1,
            key_file=registry.path.with_name("fixed.key"),
        )  # fmt: skip
        with pytest.raises(DataError, match="SYNTH-08"):
            ingest(config)
        assert not Registry.open(registry.path).volumes("source = 'made'")

    def test_synthetic_must_be_said(self) -> None:
        with pytest.raises(ConfigError, match="say both"):
            Source(name="a", licence="CC0-1.0", root="x", generated=True)


class TestTasks:
    def test_apart_from_the_real_ones(self, mixed: Registry, organs: Task) -> None:
        cohort = load_cohort(mixed, organs)
        pairs = pair_labels(mixed, cohort, organs)
        real = {pair.image.source for pair in pairs.train + pairs.val + pairs.test}
        assert real == {"phantoms"}
        assert [pair.image.source for pair in pairs.generated] == ["made"] * 3

    def test_test_split_is_refused(
        self, mixed: Registry, organs: Task, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A registry that somebody altered."""
        rows = mixed.volumes("role = 'image'")
        altered = [replace(r, split="test") if r.source == "made" else r for r in rows]
        monkeypatch.setattr(Registry, "volumes", lambda *_args: altered)
        with pytest.raises(DataError, match="SYNTH-07"):
            load_cohort(mixed, organs)

    def test_only_of_the_patients_drawn(self, mixed: Registry, organs: Task) -> None:
        data = prepare(mixed, organs).data
        assert isinstance(data, Pairs)
        first, second, *_ = training_patients(mixed)
        cell = _cell(organs, Recipe(synthetic_share=0.5))
        by_patient = {pair.image.subject_id: Shot(pair, None) for pair in data.train}
        one = generated_shots(cell, data, [by_patient[first]])
        assert {s.pair.image.generated_from for s in one} == {frozenset({first})}
        assert len(generated_shots(cell, data, [by_patient[first], by_patient[second]])) == 3
        others = [s for p, s in by_patient.items() if p not in (first, second)]
        with pytest.raises(DataError, match=r"DATA-09.*generated"):
            generated_shots(cell, data, others)
        assert generated_shots(_cell(organs, Recipe()), data, others) == []

    def test_no_further_volumes_of_a_patient(self, mixed: Registry, organs: Task) -> None:
        """Both sequences of a patient are labelled, and only one of them was drawn."""
        data = prepare(mixed, replace(organs, where="")).data
        assert isinstance(data, Pairs)
        cell = _cell(organs, Recipe(synthetic_share=0.5))
        with pytest.raises(ConfigError, match="shots_unit to patients"):
            generated_shots(cell, data, [Shot(data.train[0], None)])

    def test_settings_that_would_not_be_heard(self, finetune_config, suite_config) -> None:
        recipe = Recipe(synthetic_share=0.5)
        prompting = Task(name="p", kind="prompting", labels={"a": 1})
        with pytest.raises(ConfigError, match="no other kind"):
            finetune_config(task=prompting, recipe=recipe)
        with pytest.raises(ConfigError, match="no baseline"):
            suite_config(baselines=("unet",), recipe=recipe)
        with pytest.raises(ConfigError, match="draw of slices"):
            Recipe(synthetic_share=0.5, shots_unit="slices")

    def test_in_the_notes_of_a_cell(self, mixed: Registry, finetune_config) -> None:
        from downstream import finetune

        config = finetune_config(registry=mixed.path, k=4)
        recipe = replace(config.recipe, synthetic_share=0.5)
        out = finetune(replace(config, recipe=recipe))
        assert "50% of each batch from 3 synthetic volumes" in (out / "report.html").read_text()


class TestBatches:
    @pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.5, 2), (1.0, 4)])
    def test_share_of_every_batch(
        self, micro: Encoder, recipe: Recipe, share: float, expected: int
    ) -> None:
        trainer = _trainer(micro, replace(recipe, synthetic_share=share), generated=bool(share))
        for step in range(5):
            _, images, masks = trainer._batch(step)
            assert len(masks) == 4
            assert int((images.flatten(1).mean(1) > 0.5).sum()) == expected

    def test_no_share_trains_as_ever(self, micro: Encoder, recipe: Recipe) -> None:
        plain, with_none = (_trainer(micro, recipe, generated=False) for _ in range(2))
        assert plain.step(0) == with_none.step(0)


def _trainer(micro: Encoder, recipe: Recipe, *, generated: bool) -> Trainer:
    """Dark real slices and bright generated ones."""
    masks = torch.zeros(6, 32, 32, dtype=torch.int64)
    masks[:, 8:16, 8:16] = 1
    dark, bright = (
        LabelledSlices(torch.full((6, 1, 32, 32), level), masks) for level in (0.2, 0.9)
    )
    return Trainer(
        micro, [dark], [], labels={1: "a"}, adaptation="head",
        recipe=replace(recipe, num_validation=0), steps=5, seed=0, name="t",
        generated=[bright] if generated else [],
    )  # fmt: skip


def _cell(task: Task, recipe: Recipe) -> Cell:
    return Cell(
        task=task, weights="w", against="t", fingerprint="f", scans="s", k=2, seed=0, recipe=recipe
    )
