"""The command on a registry of phantoms: cohorts, weights, answers kept, bad input."""

from __future__ import annotations

import json
import shutil

import pytest

import core_mri
from core_mri.errors import ConfigError, DataError
from core_mri.training_statistics import STATISTICS
from data_registry.catalogue import Registry
from data_registry.cli import main
from data_registry.cohorts import freeze


@pytest.fixture(scope="module")
def own(tmp_path_factory, run_ingest):
    """Eight brains, eight knees and eight prostates, six slices each."""
    from core_mri.files.nifti import write_nifti
    from core_mri.physics.phantoms import phantom_volume

    folder = tmp_path_factory.mktemp("similarity")
    Registry.create(folder / "reg", fractions=(1.0, 0.0, 0.0))
    for region in ("brain", "knee", "prostate"):
        for subject in range(8):
            image, _ = phantom_volume(region, subject, "T2", size=40, num_slices=6)
            path = folder / region / f"sub-{region}{subject:02d}" / f"{region}_T2.nii.gz"
            path.parent.mkdir(parents=True)
            write_nifti(image, path)
        source = {"name": region, "licence": "CC0-1.0"}
        run_ingest(folder / "reg", folder / region, source=source)
    registry = Registry.open(folder / "reg")
    freeze(registry, "brains", "region = 'brain'")
    freeze(registry, "mixed", "region <> 'prostate'")
    freeze(registry, "knees", "region = 'knee'")
    freeze(registry, "prostates", "region = 'prostate'")
    subject = registry.volumes("region = 'brain'")[0].subject_id
    freeze(registry, "one", f"subject_id = '{subject}'")
    return registry


@pytest.fixture(scope="module")
def weights(tmp_path_factory, own):
    """Random weights that say they were trained on the knees."""
    folder = tmp_path_factory.mktemp("weights") / "run" / "weights"
    subjects = [row.subject_id for row in own.volumes("region = 'knee'")]
    core_mri.save_model(core_mri.create_model("vit_micro_patch8"), folder, {"subjects": subjects})
    assert main(["statistics", str(folder), "--registry", str(own.path), "--cohort", "knees"]) == 0
    return folder


def run(own, capsys, *words):
    assert main(["similarity", "--registry", str(own.path), "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


class TestCohorts:
    def test_by_radiomic_features(self, own, capsys):
        found = run(own, capsys, "--task", "brains", "--pretraining", "knees")
        (comparison,) = found["comparisons"]
        by_name = {one["distance"]: one for one in comparison["distances"]}
        assert by_name["KID"]["value"] > 0
        assert by_name["KID"]["low"] < by_name["KID"]["value"] < by_name["KID"]["high"]
        assert by_name["KID"]["patients"] == by_name["KID"]["pretraining_patients"] == 8
        assert by_name["JS region"]["value"] == pytest.approx(1)
        assert by_name["FD at 200 slices"]["value"] is None
        assert "200" in by_name["FD at 200 slices"]["refused"]

    def test_shared_patients_are_said_first(self, own, capsys):
        found = run(own, capsys, "--task", "brains", "--pretraining", "mixed")
        (comparison,) = found["comparisons"]
        assert len(comparison["shared_patients"]) == 8
        assert comparison["same_voxels"] == 8
        assert comparison["verdict"].startswith("8 of 8 task patients are in the pretraining data")

    def test_advice(self, own, capsys):
        words = ("--task", "brains", "--pretraining", "knees", "--advise")
        found = run(own, capsys, *words)
        names = [step["add"] for step in found["advice"]["brains"]]
        assert "brain" not in names  # all its patients are those of the task
        half = sorted({row.subject_id for row in own.volumes("source = 'brain'")})[:4]
        freeze(own, "half", f"subject_id IN ({', '.join(map(repr, half))})")
        found = run(own, capsys, "--task", "half", "--pretraining", "knees", "--advise")
        (first, *_) = found["advice"]["half"]
        assert first["add"] == "brain"
        assert first["after"] < first["before"]
        assert first["patients"] == 4

    def test_a_page(self, own, capsys, tmp_path):
        words = ("--task", "brains", "prostates", "--pretraining", "knees", "--out", str(tmp_path))
        run(own, capsys, *words)
        page = (tmp_path / "similarity.html").read_text()
        assert "Nearest and farthest slices" in page
        assert "https://" not in page
        content = json.loads((tmp_path / "similarity.json").read_text())
        assert [c["task"] for c in content["comparisons"]] == ["brains", "prostates"]

    def test_answers_are_kept_and_shown(self, own, capsys):
        query = "SELECT count(*) AS n FROM similarities"
        before = own.sql(query)["n"][0].as_py()
        run(own, capsys, "--task", "prostates", "--pretraining", "knees")
        assert own.sql(query)["n"][0].as_py() > before
        main(["stats", "--registry", str(own.path), "--json"])
        shown = json.loads(capsys.readouterr().out)["similarity"]
        assert ("prostates", "knees") in {(row["task"], row["pretraining"]) for row in shown}


class TestWeights:
    def test_without_their_training_data(self, own, weights, capsys):
        found = run(own, capsys, "--task", "brains", "--pretraining", str(weights))
        (comparison,) = found["comparisons"]
        kid = comparison["distances"][0]
        assert comparison["pretraining"] == "run"
        assert (kid["distance"], kid["features"]) == ("KID", "run")
        assert kid["pretraining_slices"] == 48
        assert comparison["shared_patients"] == []

    def test_card_and_file_go_with_a_copy(self, own, weights, capsys, tmp_path):
        copy = shutil.copytree(weights, tmp_path / "copy")
        run(own, capsys, "--task", "brains", "--pretraining", str(copy), "--update-card")
        text = (copy / "README.md").read_text()
        assert "Similarity to tasks" in text
        assert "| brains | KID |" in text
        assert core_mri.load_model(copy, device="cpu").statistics is not None

    def test_shared_patients_by_pseudonym(self, own, weights, capsys):
        found = run(own, capsys, "--task", "mixed", "--pretraining", str(weights))
        assert len(found["comparisons"][0]["shared_patients"]) == 8

    def test_false_alarms_are_measured(self, own, weights, capsys):
        words = ["statistics", str(weights), "--registry", str(own.path), "--check", "--json"]
        assert main([*words, "--split", "train", "--cohort", "knees"]) == 0
        assert json.loads(capsys.readouterr().out)["patients"] == 8

    def test_no_statistics(self, own, weights, tmp_path):
        copy = shutil.copytree(weights, tmp_path / "copy")
        (copy / STATISTICS).unlink()
        words = ["--registry", str(own.path), "--task", "brains", "--pretraining", str(copy)]
        with pytest.raises(DataError, match="DATA-38"):
            main(["similarity", *words])


class TestBadInput:
    def test_one_patient(self, own):
        words = ["--registry", str(own.path), "--task", "one", "--pretraining", "knees"]
        with pytest.raises(DataError, match=r"DATA-09: .*of 1 patient"):
            main(["similarity", *words])

    def test_unknown_pretraining(self, own):
        words = ["--registry", str(own.path), "--task", "brains", "--pretraining", "nothing"]
        with pytest.raises(ConfigError, match="CONFIG-02"):
            main(["similarity", *words])

    def test_nothing_asked(self, own):
        with pytest.raises(ConfigError, match="CONFIG-01"):
            main(["similarity", "--registry", str(own.path)])
