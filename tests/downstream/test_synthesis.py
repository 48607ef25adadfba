"""Promises of `core-mri synthesize`: pairs are what they say, runs resume, errors are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from core_mri import load_model, read_volume, save_model, write_volume
from core_mri.__main__ import main
from core_mri.config import load_config, save_config
from core_mri.errors import ConfigError, DataError, WeightsError
from core_mri.launch import Workers
from core_mri.models.generator import Generator
from core_mri.models.generator_config import GeneratorConfig
from core_mri.physics.label_to_image import Physics
from core_mri.physics.phantoms import phantom_volume
from core_mri.volume import Volume
from data_registry.catalogue import Registry
from data_registry.governance.uses import uses_of
from data_registry.ingest import IngestConfig, ingest
from data_registry.source_list import Source
from downstream.config import Task
from downstream.segmentation.data import read_mask
from downstream.synthesis.cases import class_names, complete, read_case, training_pairs
from downstream.synthesis.cli import CONFIGS
from downstream.synthesis.config import (
    Anatomy,
    EditConfig,
    EvaluateConfig,
    GeneratorTraining,
    LesionPlan,
    SampleConfig,
    TrainConfig,
)
from downstream.synthesis.copies import copied
from downstream.synthesis.edits import Edit
from downstream.synthesis.evaluate import evaluate
from downstream.synthesis.makers import TrainedMaker
from downstream.synthesis.pairs import pair_folders
from downstream.synthesis.privacy import Slices, inspect
from downstream.synthesis.reader import ANSWERS, KEY, read_answers
from downstream.synthesis.run import train
from downstream.synthesis.sample import edit, sample

TASK = Task(
    name="brain", kind="segmentation", where="region = 'brain'",
    labels={"csf": 1, "gray matter": 2, "white matter": 3, "lesion": 4},
)  # fmt: skip
LESIONS = LesionPlan(structure="lesion", inside=("white matter", "gray matter"), clear=True)
STILL = Physics(rotation=0, scale=0, shift=0, displacement=0, artefact_chance=0)
SIZES = {
    "spade": GeneratorConfig(kind="spade", image_size=32, width=8, depth=2, style=4),
    "diffusion": GeneratorConfig(
        kind="diffusion", image_size=32, width=8, depth=2, sampling_steps=2
    ),
    "latent": GeneratorConfig(
        kind="diffusion", space="latent", image_size=32, width=8, depth=2, sampling_steps=2,
        latent_levels=1,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """16 phantom brains of 32 x 32 x 6 voxels, some with a lesion."""
    folder = tmp_path_factory.mktemp("brains")
    for role in ("image", "label"):
        (folder / role).mkdir()
    for subject in range(16):
        pair = phantom_volume("brain", subject, "T1", size=32, num_slices=6, seed=3)
        for role, volume in zip(("image", "label"), pair, strict=True):
            write_volume(volume, folder / role / f"s{subject:02d}.nii.gz")
    key = folder / "registry.key"
    key.write_text("5a" * 32 + "\n")
    key.chmod(0o600)
    facts = {
        "name": "phantoms", "licence": "CC0-1.0", "synthetic": True, "region": "brain",
        "sequence": "T1", "subject": "(?P<subject>s[0-9]+)",
    }  # fmt: skip
    sources = tuple(Source(root=str(folder / r), role=r, **facts) for r in ("image", "label"))
    Registry.create(folder / "registry", fractions=(0.5, 0.1, 0.4))
    ingest(IngestConfig(registry=folder / "registry", sources=sources, key_file=key, jobs=1))
    return Registry.open(folder / "registry")


@pytest.fixture
def sampling(brains: Registry, tmp_path: Path) -> SampleConfig:
    return SampleConfig(
        registry=brains.path, out=tmp_path / "pairs", task=TASK, count=3, ingest=False,
        anatomy=Anatomy(tissues=2), physics=STILL, lesions=LESIONS, device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module", params=SIZES)
def trained(request, brains: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generator") / request.param
    return train(_training(brains, out, SIZES[request.param]))


def _training(brains: Registry, out: Path, sizes: GeneratorConfig, **changes) -> TrainConfig:
    values = {
        "registry": brains.path, "out": out, "task": TASK, "steps": 3, "generator": sizes,
        "anatomy": Anatomy(tissues=2), "device": "cpu", "checkpoint_every": 2,
        "training": GeneratorTraining(
            batch_size=4, discriminator_width=4, autoencoder_steps=1
        ),
    }  # fmt: skip
    return TrainConfig(**(values | changes))


def _losses(out: Path) -> list[str]:
    return [json.loads(line)["loss_hex"] for line in (out / "metrics.jsonl").open()]


class TestCases:
    def test_tissues_fill_what_is_not_labelled(self, brains: Registry) -> None:
        task, pairs = training_pairs(brains, TASK, patients=0, seed=0)
        case = read_case(brains, pairs[0], task, Anatomy(tissues=3), 0)
        mask = read_mask(brains, pairs[0], task)
        assert np.array_equal(case.labels.array[mask > 0], mask[mask > 0])
        assert set(np.unique(case.labels.array[mask == 0])) <= {0, 5, 6, 7}
        assert list(class_names(task, Anatomy(tissues=3)).values())[4:] == [
            "tissue 1", "tissue 2", "tissue 3",
        ]  # fmt: skip

    def test_darkest_tissue_first(self) -> None:
        image = np.repeat(np.array([0.0, 0.2, 0.5, 0.9], np.float32), 64).reshape(1, 4, 8, 8)
        whole = complete(
            image, np.zeros((4, 8, 8), np.uint8), 2, Anatomy(tissues=3, smoothing=0), 0
        )
        assert [set(np.unique(part)) for part in whole] == [{0}, {3}, {4}, {5}]

    def test_patients_are_those_of_the_draw(self, brains: Registry) -> None:
        _, two = training_pairs(brains, TASK, patients=2, seed=0)
        _, three = training_pairs(brains, TASK, patients=3, seed=0)
        subjects = [{pair.image.subject_id for pair in pairs} for pairs in (two, three)]
        assert (len(subjects[0]), len(subjects[1])) == (2, 3)
        assert subjects[0] < subjects[1]


class TestSample:
    def test_pairs_are_what_their_provenance_says(self, sampling: SampleConfig) -> None:
        out = sample(sampling)
        folders = pair_folders(out)
        assert len(folders) == 3
        for folder in folders:
            facts = json.loads((folder / "provenance.json").read_text())
            image, labels = (read_volume(folder / f"{n}.nii.gz") for n in ("image", "labels"))
            assert image.same_grid(labels)
            assert facts["synthetic"] is True
            assert facts["generated_from"]
            (edited,) = facts["edits"]
            assert int((labels.array == 4).sum()) == edited["voxels"]
            assert set(facts["generated_from"]) == {facts["labels_of"], edited["shape_of"]}

    def test_labels_are_the_anatomy_with_the_values_of_the_task(
        self, sampling: SampleConfig
    ) -> None:
        """The scan was made from the anatomy; tissues are nobody's structure."""
        task = replace(TASK, labels={"lesion": 4}, other_labels="background")
        plan = replace(LESIONS, inside=("tissue 2",))
        (folder,) = pair_folders(sample(replace(sampling, task=task, lesions=plan, count=1)))
        labels, anatomy = (read_volume(folder / f"{n}.nii.gz").array for n in ("labels", "anatomy"))
        assert np.array_equal(labels == 4, anatomy == 1)
        assert set(np.unique(labels)) == {0, 4}
        assert set(np.unique(anatomy)) == {1, 2, 3}

    def test_function_of_the_seed(self, sampling: SampleConfig, tmp_path: Path) -> None:
        first = sample(sampling)
        second = sample(replace(sampling, out=tmp_path / "again"))
        other = sample(replace(sampling, out=tmp_path / "other", seed=1))
        images = [
            [read_volume(f / "image.nii.gz").array for f in pair_folders(out)]
            for out in (first, second, other)
        ]
        assert all(np.array_equal(a, b) for a, b in zip(images[0], images[1], strict=True))
        assert not any(np.array_equal(a, b) for a, b in zip(images[0], images[2], strict=True))

    def test_interrupted_goes_on(self, sampling: SampleConfig) -> None:
        def stop(done: int, _count: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sample(sampling, on_progress=stop)
        kept = {f.name: (f / "image.nii.gz").stat().st_mtime_ns for f in pair_folders(sampling.out)}
        assert len(kept) == 2
        sample(sampling, resume=True)
        found = {f.name: (f / "image.nii.gz").stat().st_mtime_ns
                 for f in pair_folders(sampling.out)}  # fmt: skip
        assert len(found) == 3
        assert kept.items() <= found.items()

    def test_becomes_a_source_that_is_never_tested_on(
        self, brains: Registry, sampling: SampleConfig, tmp_path: Path
    ) -> None:
        import shutil

        own = tmp_path / "registry"
        shutil.copytree(brains.path, own)
        key = brains.path.with_name("registry.key")
        config = replace(
            sampling, registry=own, ingest=True, key_file=key, count=8, source="made",
            anatomy=Anatomy(tissues=2),
        )  # fmt: skip
        sample(config)
        registry = Registry.open(own)
        made = registry.volumes("source = 'made'")
        assert {row.role for row in made} == {"image", "label"}
        assert len(made) == 16
        assert {row.split for row in made} == {"train"}
        assert all(row.synthetic for row in made)
        train_patients = {row.subject_id for row in brains.volumes("split = 'train'")}
        assert all(row.generated_from <= train_patients for row in made)
        assert registry.stats()["synthetic"] == brains.stats()["synthetic"] + 8
        assert len(registry.labels_of(next(row for row in made if row.role == "image"))) == 1

    def test_anatomies_are_bent_before_lesions_are_put_in(
        self, brains: Registry, sampling: SampleConfig, tmp_path: Path
    ) -> None:
        """The volume of a lesion is exact whatever is done to the anatomy around it."""
        config = replace(sampling, physics=Physics(), count=2)
        task, pairs = training_pairs(brains, TASK, patients=0, seed=0)
        for deform in (True, False):
            out = sample(replace(config, deform=deform, out=tmp_path / str(deform)))
            for number, folder in enumerate(pair_folders(out)):
                facts = json.loads((folder / "provenance.json").read_text())
                labels = read_volume(folder / "labels.nii.gz").array
                assert int((labels == 4).sum()) == facts["edits"][0]["voxels"]
                own = read_mask(brains, pairs[number], task)
                still = float((labels == own)[(own > 0) & (own < 4) & (labels != 4)].mean())
                assert (still > 0.99) is not deform

    def test_several_sequences_share_an_anatomy(self) -> None:
        from downstream.synthesis.makers import PhysicsMaker, on_square

        labels = Volume(np.pad(np.ones((2, 20, 12), np.uint8), ((0, 0), (4, 4), (4, 4))), np.eye(4))
        square = on_square(replace(labels, kind="label"), 32)
        scan = PhysicsMaker(replace(STILL, spread=(0, 0), noise=(0, 0)), ("T1", "T2")).make(
            square, 0
        )
        assert scan.channels.shape == (2, 2, 32, 32)
        assert not np.allclose(scan.channels[0], scan.channels[1])


class TestTrain:
    def test_releases_a_generator(self, trained: Path, brains: Registry) -> None:
        model = load_model(trained, device="cpu")
        assert isinstance(model, Generator)
        assert model.labels == class_names(TASK, Anatomy(tissues=2))
        patients = {row.subject_id for row in brains.volumes("split = 'train'")}
        assert set(model.card["subjects"]) == patients
        assert model.card["licence"] == "CC0-1.0"

    def test_the_registry_knows_of_it(self, trained: Path, brains: Registry) -> None:
        saved = json.loads((trained / "weights" / "config.json").read_text())
        patients = {row.subject_id for row in brains.volumes("split = 'train'")}
        uses = [use for use in uses_of(brains.path, patients) if use["sha256"] == saved["sha256"]]
        assert [use["run"] for use in uses] == ["synthesize"]

    def test_resumed_is_the_same(self, trained: Path, brains: Registry, tmp_path: Path) -> None:
        sizes = load_model(trained, device="cpu").config
        config = _training(brains, tmp_path / "run", sizes)
        train(replace(config, steps=2))
        marker = tmp_path / "run" / "run.json"
        marker.write_text(marker.read_text().replace('"steps": 2', '"steps": 3'))
        train(config, resume=True)
        assert _losses(tmp_path / "run") == _losses(trained)

    @pytest.mark.slow
    def test_loss_falls(self, brains: Registry, tmp_path: Path) -> None:
        fast = GeneratorTraining(batch_size=4, learning_rate=2e-3)
        config = _training(brains, tmp_path / "run", SIZES["diffusion"], steps=30, training=fast)
        out = train(config)
        losses = [float.fromhex(loss) for loss in _losses(out)]
        assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])

    def test_samples_what_it_was_trained_on(self, trained: Path, sampling: SampleConfig) -> None:
        out = sample(replace(sampling, generator=str(trained), count=2))
        facts = json.loads((pair_folders(out)[0] / "provenance.json").read_text())
        card = load_model(trained, device="cpu").card
        assert set(facts["generated_from"]) == set(card["subjects"])
        assert facts["generator"]["sha256"]
        labels = read_volume(pair_folders(out)[0] / "labels.nii.gz").array
        assert int((labels == 4).sum()) == facts["edits"][0]["voxels"]

    def test_stops_when_the_time_is_up(self, brains: Registry, tmp_path: Path) -> None:
        config = _training(brains, tmp_path / "run", SIZES["diffusion"], steps=10**6, seconds=0.5)
        out = train(config)
        assert 1 <= len(_losses(out)) < 10**4
        assert isinstance(load_model(out, device="cpu"), Generator)

    def test_changed_scans_are_refused(
        self, trained: Path, brains: Registry, tmp_path: Path
    ) -> None:
        sizes = load_model(trained, device="cpu").config
        config = _training(brains, tmp_path / "run", sizes, patients=3)
        train(replace(config, steps=2))
        marker = tmp_path / "run" / "run.json"
        text = marker.read_text().replace('"steps": 2', '"steps": 3')
        marker.write_text(text.replace('"patients": 3', '"patients": 2'))
        with pytest.raises(ConfigError, match="training scans have changed"):
            train(replace(config, patients=2))

    @pytest.mark.slow
    def test_two_workers_give_the_losses_of_one(
        self, trained: Path, brains: Registry, tmp_path: Path
    ) -> None:
        config = _training(brains, tmp_path / "run", load_model(trained, device="cpu").config)
        train(config, workers=Workers(launcher="torchrun", num_workers=2))
        one, two = (list(map(float.fromhex, _losses(out))) for out in (trained, tmp_path / "run"))
        assert two == pytest.approx(one, rel=1e-4)
        assert isinstance(load_model(tmp_path / "run", device="cpu"), Generator)

    def test_too_many_workers(self, brains: Registry, tmp_path: Path) -> None:
        config = _training(brains, tmp_path / "run", SIZES["spade"])
        with pytest.raises(ConfigError, match="cannot be shared"):
            train(config, workers=Workers(launcher="torchrun", num_workers=5))


class TestLatent:
    """The autoencoder and its codes."""

    @pytest.fixture(scope="class")
    @staticmethod
    def run(brains: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("latent") / "run"
        fast = GeneratorTraining(
            batch_size=8, learning_rate=4e-3, ema=0.5, autoencoder_steps=60
        )  # fmt: skip
        return train(_training(brains, out, SIZES["latent"], steps=63, training=fast))

    @pytest.fixture
    def images(self, brains: Registry) -> tuple[torch.Tensor, torch.Tensor]:
        from downstream.synthesis.run import on_grid

        task, pairs = training_pairs(brains, TASK, patients=0, seed=0)
        cases = [read_case(brains, pair, task, Anatomy(tissues=2), 0) for pair in pairs]
        found = [on_grid(case, 32) for case in cases]
        return torch.cat([images for images, _ in found]), torch.cat([own for _, own in found])

    def test_round_trip(self, run: Path, images: tuple[torch.Tensor, torch.Tensor]) -> None:
        """There and back is nearer than the best constant image, and than a generator's start."""
        model, (real, labels) = load_model(run, device="cpu"), images
        real = real[labels.flatten(1).any(1)]
        with torch.no_grad():
            error = (model.decode(model.encode(real)) - real).abs().mean()
        constant = (real - real.median()).abs().mean()
        assert error < 0.6 * constant

    def test_codes_have_unit_size(
        self, run: Path, images: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        model, (real, labels) = load_model(run, device="cpu"), images
        with torch.no_grad():
            codes = model.encode(real[labels.flatten(1).any(1)])
        assert codes.shape[1:] == model.code_shape(32) == (4, 16, 16)
        assert codes.mean((0, 2, 3)).abs().max() < 1e-3
        assert (codes.std((0, 2, 3)) - 1).abs().max() < 1e-3

    def test_slices_are_a_function_of_the_seed(self, run: Path) -> None:
        model = load_model(run, device="cpu")
        labels = torch.zeros(3, 32, 32, dtype=torch.long)
        labels[:, 8:20, 8:20] = 3
        first, again, other = (model.generate(labels, seed) for seed in (1, 1, 2))
        assert first.shape == (3, 1, 32, 32)
        assert first.min() >= 0
        assert first.max() <= 1
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_diffusion_leaves_the_autoencoder(self, brains: Registry, tmp_path: Path) -> None:
        """Its weights after the last step are those it had when the diffusion began."""
        kept = {}
        for steps in (2, 4):
            out = train(_training(brains, tmp_path / str(steps), SIZES["latent"], steps=steps))
            kept[steps] = load_model(out, device="cpu").autoencoder.state_dict()
        assert all(torch.equal(kept[2][name], kept[4][name]) for name in kept[2])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"kind": "spade"}, "space latent belongs to diffusion"),
            ({"latent_levels": 0}, "must be 1 or more"),
            ({"latent_levels": 5}, "no multiple of 2"),
        ],
    )
    def test_impossible_sizes(self, change: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            replace(SIZES["latent"], **change)

    def test_steps_for_the_diffusion(self, brains: Registry, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="nothing is left for the diffusion"):
            _training(brains, tmp_path, SIZES["latent"], steps=1)


class TestLabelMaps:
    """Anatomies that come without a scan."""

    @pytest.fixture(scope="class")
    @staticmethod
    def heads(brains: Registry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
        """The phantoms, and three patients who have a label map alone, of a value above 255."""
        import shutil

        folder = tmp_path_factory.mktemp("heads")
        shutil.copytree(brains.path, folder / "registry")
        (folder / "maps").mkdir()
        for subject in range(6):
            labels = phantom_volume("brain", 40 + subject, "T1", size=32, num_slices=6, seed=3)[1]
            array = np.asarray(labels.array).astype(np.int16)
            array[array == 1] = 507
            write_volume(labels.with_array(array), folder / "maps" / f"m{subject}.nii.gz")
        source = Source(
            name="maps", licence="Apache-2.0", root=str(folder / "maps"), role="label",
            synthetic=True, region="brain", subject="(?P<subject>m[0-9])",
        )  # fmt: skip
        ingest(
            IngestConfig(
                registry=folder / "registry", sources=(source,), jobs=1,
                key_file=brains.path.with_name("registry.key"),
            )
        )  # fmt: skip
        return Registry.open(folder / "registry")

    @pytest.fixture
    def config(self, heads: Registry, tmp_path: Path) -> SampleConfig:
        task = replace(TASK, labels={"left white": 3, "right gray": 2}, other_labels="background")
        return SampleConfig(
            registry=heads.path, out=tmp_path / "pairs", task=task, count=3, ingest=False,
            label_maps="source = 'maps'", physics=STILL,
        )  # fmt: skip

    def test_pairs_of_training_patients(self, heads: Registry, config: SampleConfig) -> None:
        folders = pair_folders(sample(config))
        allowed = {row.subject_id for row in heads.volumes("source = 'maps' AND split = 'train'")}
        assert len(folders) == 3
        for folder in folders:
            facts = json.loads((folder / "provenance.json").read_text())
            labels, anatomy = (
                read_volume(folder / f"{n}.nii.gz").array for n in ("labels", "anatomy")
            )
            assert set(facts["generated_from"]) <= allowed
            assert {"value 507"} <= set(facts["anatomy"].values())
            assert set(np.unique(labels)) == {0, 2, 3}
            names = {name: int(value) for value, name in facts["anatomy"].items()}
            assert np.array_equal(labels == 3, anatomy == names["left white"])
            assert (anatomy == names["value 507"]).any()

    def test_licence_and_region_are_those_of_the_maps(self, config: SampleConfig) -> None:
        import yaml

        entries = yaml.safe_load((sample(config) / "source.yaml").read_text())["sources"]
        assert {entry["licence"] for entry in entries} == {"Apache-2.0"}
        assert {entry["region"] for entry in entries} == {"brain"}

    def test_lesions_of_other_patients(self, heads: Registry, config: SampleConfig) -> None:
        """Their shapes come from label maps that name them, their patients are told."""
        task = replace(config.task, labels={"left white": 3, "right gray": 2, "blot": 9})
        plan = LesionPlan(
            structure="blot", inside=("left white", "right gray"),
            shapes="source = 'phantoms'",
        )  # fmt: skip
        # The phantoms' maps name no structure: value 1 is taken.
        out = sample(replace(config, task=task, lesions=plan, count=2))
        givers = {row.subject_id for row in heads.volumes("source = 'phantoms'")}
        for folder in pair_folders(out):
            facts = json.loads((folder / "provenance.json").read_text())
            (edited,) = facts["edits"]
            assert edited["shape_of"] in givers
            assert edited["shape_of"] in facts["generated_from"]
            labels = read_volume(folder / "labels.nii.gz").array
            assert int((labels == 9).sum()) == edited["voxels"]

    def test_both_sides_share_a_signal_and_a_told_one_is_kept(self) -> None:
        from downstream.synthesis.makers import PhysicsMaker

        names = {1: "Left thing", 2: "right thing", 3: "other"}
        plain = replace(STILL, spread=(0, 0), noise=(0, 0), blur_px=(0.05, 0.05), bias_ratio=(1, 1),
                        log_gamma=0, resolution=(1, 1), background_chance=1)  # fmt: skip
        maker = PhysicsMaker(plain, ("T1",), names, {"T1": {"other": (0.99, 1.0), "*": (0.2, 0.9)}})
        array = np.zeros((1, 32, 32), np.uint8)
        array[:, 4:12], array[:, 12:20], array[:, 20:28] = 1, 2, 3
        for seed in range(5):
            image = maker.make(Volume(array, np.eye(4), kind="label"), seed).channels[0, 0]
            assert image[8].mean() == pytest.approx(image[16].mean(), abs=0.06)
            assert image[24].mean() == pytest.approx(float(image.mean(1).max()), abs=1e-5)

    def test_patients_outside_of_the_train_split(self, config: SampleConfig) -> None:
        with pytest.raises(DataError, match=r"DATA-09.*train split"):
            sample(replace(config, label_maps="source = 'maps' AND split <> 'train'"))
        plan = LesionPlan(structure="left white", inside=("right gray",), shapes="split = 'test'")
        with pytest.raises(DataError, match=r"DATA-09.*train split"):
            sample(replace(config, lesions=plan))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"generator": "runs/generator"}, "for the generator physics"),
            ({"signals": {"T2": {"*": (0.1, 0.2)}}}, "no sequences of the task"),
            ({"signals": {"": {"*": (0.4, 0.2)}}}, "must ascend"),
        ],
    )
    def test_wrong_requests(
        self, config: SampleConfig, change: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            replace(config, **change)

    def test_signal_of_nothing(self, config: SampleConfig) -> None:
        with pytest.raises(ConfigError, match="no structure or tissue is called 'bone'"):
            sample(replace(config, signals={"": {"bone": (0.1, 0.2)}}))


class TestWrongGenerator:
    def test_other_labels(self, trained: Path, sampling: SampleConfig) -> None:
        task = replace(TASK, labels={"csf": 1, "lesion": 4}, other_labels="background")
        with pytest.raises(DataError, match=r"SYNTH-06.*trained on the labels"):
            sample(replace(sampling, task=task, generator=str(trained)))

    def test_other_sequences(self, trained: Path) -> None:
        with pytest.raises(DataError, match=r"SYNTH-06.*sequences"):
            TrainedMaker(str(trained), "cpu").check_sequences(("T1", "FLAIR"))

    def test_no_generator(self, micro, tmp_path: Path) -> None:
        save_model(micro, tmp_path)
        with pytest.raises(WeightsError, match=r"WEIGHTS-03.*not a generator"):
            TrainedMaker(str(tmp_path), "cpu")

    def test_copies_are_refused(
        self, trained: Path, brains: Registry, sampling: SampleConfig, monkeypatch
    ) -> None:
        """A generator that gives back what it was shown."""
        task, pairs = training_pairs(brains, TASK, patients=0, seed=0)
        from downstream.synthesis.run import on_grid

        case = read_case(brains, pairs[0], task, Anatomy(tissues=2), 0)
        known = on_grid(case, 32)[0]
        monkeypatch.setattr(
            "core_mri.models.generator.SpadeGenerator.generate", lambda *_args: known * 0.9 + 0.05
        )
        monkeypatch.setattr(
            "core_mri.models.generator.DiffusionGenerator.generate", lambda *_args: known
        )
        with pytest.raises(DataError, match=r"SYNTH-08.*copies training patients"):
            sample(replace(sampling, generator=str(trained), lesions=LesionPlan()))

    def test_a_copy_with_noise_is_told_and_another_scan_is_none(self) -> None:
        rng = np.random.default_rng(0)
        training = torch.nn.functional.interpolate(
            torch.from_numpy(rng.random((5, 1, 8, 8), dtype=np.float32)), (64, 64), mode="bicubic"
        ).numpy()[:, 0]
        copy = 0.5 * training[3] + 0.1 + 0.005 * rng.normal(size=(64, 64)).astype(np.float32)
        assert copied(copy[None], training).tolist() == [0]
        assert copied(training[:1].copy(), training[1:]).tolist() == []


class TestEdit:
    @pytest.fixture
    def files(self, tmp_path: Path) -> dict[str, Path]:
        found = {}
        for subject in range(20):
            labels = phantom_volume("brain", subject, "T1", size=64, num_slices=12, seed=0)[1]
            name = "ill" if (labels.array == 4).sum() > 30 else "healthy"
            if name not in found:
                found[name] = tmp_path / f"{name}.nii.gz"
                write_volume(labels, found[name])
        return found

    def flags(self, files: dict[str, Path], out: Path) -> list[str]:
        return [
            "synthesize", "edit", "--labels", str(files["healthy"]), "--names", "1=csf", "2=gray",
            "3=white", "4=lesion", "--structure", "lesion", "--inside", "gray", "white",
            "--shapes", str(files["ill"]), "--shapes-value", "4", "--out", str(out),
        ]  # fmt: skip

    def test_command(self, files: dict[str, Path], tmp_path: Path, capsys) -> None:
        words = [*self.flags(files, tmp_path / "pair"), "--edit.volume-ml", "8"]
        assert main(words) == 0
        told = json.loads(capsys.readouterr().out)
        labels = read_volume(tmp_path / "pair" / "labels.nii.gz")
        unit = abs(np.linalg.det(labels.affine[:3, :3])) / 1000
        assert abs((labels.array == 4).sum() * unit - 8) <= 0.16
        assert told["shape_of"] == "ill.nii.gz"
        assert main(words) == 2  # the folder exists

    def test_grows_a_lesion_that_is_there(self, files: dict[str, Path], tmp_path: Path) -> None:
        config = EditConfig(
            labels=files["ill"], names=("1=csf", "2=gray", "3=white", "4=lesion"),
            structure="lesion", inside=("gray", "white"), out=tmp_path / "pair", change=0,
            edit=Edit(volume_ml=10, turn=False, bend=0),
        )  # fmt: skip
        facts = edit(config)
        assert facts["edits"][0]["changed_lesion"] == 0
        assert abs(facts["edits"][0]["volume_ml"] - 10) <= 0.2

    def test_unknown_value(self, files: dict[str, Path], tmp_path: Path, capsys) -> None:
        words = self.flags(files, tmp_path / "pair")
        words.remove("1=csf")
        assert main(words) == 1
        assert "SYNTH-01" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"names": ("a=b",)}, "VALUE=NAME"),
            ({"shapes": ()}, "give shapes"),
            ({"inside": ("bone",)}, "no value is named bone"),
        ],
    )
    def test_wrong_flags(self, change: dict[str, tuple[str, ...]], message: str) -> None:
        values = {
            "labels": Path("a"), "names": ("1=gray", "4=lesion"), "structure": "lesion",
            "inside": ("gray",), "out": Path("b"), "shapes": (Path("c"),),
        }  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            EditConfig(**(values | change))


class TestPrivacy:
    def rows(self, rng: np.random.Generator, owners: int, per: int, base=None, noise=1.0) -> Slices:
        rows = rng.normal(size=(owners * per, 256)).astype(np.float32)
        if base is not None:
            rows = base + noise * rows
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return Slices(rows, np.repeat(np.arange(owners), per))

    def test_strangers_are_even(self) -> None:
        rng = np.random.default_rng(0)
        found = inspect(*(self.rows(rng, n, 6) for n in (40, 30, 15)), seed=0)
        assert found.membership_auc.low < 0.5 < found.membership_auc.high
        assert found.nearer_to_training.low < 0.5 < found.nearer_to_training.high
        assert found.copies == 0

    def test_memory_is_seen(self) -> None:
        rng = np.random.default_rng(0)
        training, held_out = self.rows(rng, 20, 6), self.rows(rng, 15, 6)
        remembered = self.rows(rng, 20, 6, base=training.rows, noise=0.02)
        found = inspect(remembered, training, held_out, seed=0)
        assert found.membership_auc.low > 0.9
        assert found.nearer_to_training.low > 0.9
        exact = Slices(training.rows[:30].copy(), np.repeat(np.arange(5), 6))
        assert inspect(exact, training, held_out, seed=0).copies == 30


class TestEvaluate:
    @pytest.fixture(scope="class")
    @staticmethod
    def made(brains: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
        import shutil

        folder = tmp_path_factory.mktemp("evaluated")
        shutil.copytree(brains.path, folder / "registry")
        sample(
            SampleConfig(
                registry=folder / "registry", out=folder / "pairs", task=TASK, count=12,
                key_file=brains.path.with_name("registry.key"), anatomy=Anatomy(tissues=2),
                patients=3, device="cpu",
            )
        )  # fmt: skip
        return folder

    def test_report(self, made: Path, tmp_path: Path) -> None:
        config = EvaluateConfig(
            registry=made / "registry", out=tmp_path / "report", task=TASK, reader_slices=6
        )
        found = evaluate(config)
        assert found["privacy"]["num_training"] == 3
        names = {one["distance"] for one in found["likeness"]["brain"]}
        assert {"KID", "FRD"} <= names
        page = (tmp_path / "report" / "reader.html").read_text()
        assert "synthetic-" not in page
        assert found["readers"] is None
        assert json.loads((tmp_path / "report" / "results.json").read_text()) == json.loads(
            json.dumps(found)
        )

    def test_distances_in_the_features_of_an_encoder(
        self, made: Path, micro, tmp_path: Path
    ) -> None:
        """KID by the encoder stands beside FRD, which is by formulas."""
        save_model(micro, tmp_path / "weights")
        config = EvaluateConfig(
            registry=made / "registry", out=tmp_path / "report", task=TASK, reader_slices=0,
            encoder=str(tmp_path / "weights"),
        )  # fmt: skip
        told = {(one["features"], one["distance"]) for one in evaluate(config)["likeness"]["brain"]}
        assert {("KID", config.encoder), ("FRD", "radiomic features")} <= {
            (distance, features) for features, distance in told
        }

    @pytest.mark.slow
    def test_worth(self, made: Path, suite_config, tmp_path: Path) -> None:
        suite = suite_config(registry=made / "registry", tasks=(TASK,), k=(3,), draws=1)
        recipe = replace(suite.recipe, shots_unit="patients")
        config = EvaluateConfig(
            registry=made / "registry", out=tmp_path / "report", task=TASK, reader_slices=0,
            suite=replace(suite, recipe=recipe),
        )  # fmt: skip
        found = evaluate(config)
        assert found["failed"] == {}
        assert {row["trained_on"] for row in found["worth"]} == {"real", "synthetic", "both"}
        real = [row["difference"] for row in found["worth"] if row["trained_on"] == "real"]
        assert real == [None] * len(real)
        assert "Worth" in (tmp_path / "report" / "report.html").read_text()

    def test_readers_answers_are_read_when_there_are_some(self, tmp_path: Path) -> None:
        key = ["number,kind,volume,slice", *(f"{n},{'real' if n % 2 else 'synthetic'},V,0"
                                             for n in range(10))]  # fmt: skip
        (tmp_path / KEY).write_text("\n".join(key) + "\n")
        assert read_answers(tmp_path, 0) is None
        sheet = ["number,answer", *(f"{n},{'real' if n < 8 else ''}" for n in range(10))]
        (tmp_path / ANSWERS).write_text("\n".join(sheet) + "\n")
        reading = read_answers(tmp_path, 0)
        assert reading is not None
        assert (reading.answered, reading.accuracy.mean) == (8, 0.5)
        (tmp_path / ANSWERS).write_text("number,answer\n0,perhaps\n")
        with pytest.raises(DataError, match="DATA-31"):
            read_answers(tmp_path, 0)

    def test_without_synthetic_scans(self, brains: Registry, tmp_path: Path) -> None:
        config = EvaluateConfig(registry=brains.path, out=tmp_path / "r", task=TASK)
        with pytest.raises(DataError, match="no synthetic image"):
            evaluate(config)
        assert not (tmp_path / "r").exists()


class TestConfigurations:
    @pytest.mark.parametrize(
        ("name", "cls"),
        [
            ("train", TrainConfig),
            ("ms", TrainConfig),
            ("sample", SampleConfig),
            ("synthseg", SampleConfig),
            ("synthseg_t1", SampleConfig),
            ("evaluate", EvaluateConfig),
        ],
    )
    def test_packaged_ones_load_and_come_back(self, name: str, cls: type, tmp_path: Path) -> None:
        config = load_config(cls, CONFIGS / f"{name}.yaml")
        save_config(config, tmp_path / "saved.yaml")
        assert load_config(cls, tmp_path / "saved.yaml") == config

    def test_verbs_explain_themselves(self, capsys) -> None:
        assert main(["synthesize"]) == 2
        for verb in ("train", "sample", "edit", "evaluate"):
            assert main(["synthesize", verb, "--help"]) == 0
        assert "--edit.volume-ml" in capsys.readouterr().out

    def test_other_kinds_of_tasks(self, sampling: SampleConfig) -> None:
        task = Task(name="a", kind="classification", target="sequence")
        with pytest.raises(ConfigError, match="segmentation task"):
            replace(sampling, task=task)

    def test_unknown_tissue(self, sampling: SampleConfig) -> None:
        plan = LesionPlan(structure="lesion", inside=("bone",))
        with pytest.raises(ConfigError, match="no structure or tissue bone"):
            sample(replace(sampling, lesions=plan))
