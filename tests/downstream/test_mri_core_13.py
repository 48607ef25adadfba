"""The public tasks of the MRI-CORE paper on fake folders, laid out as each data set ships."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core_mri.__main__ import main
from data_registry import Registry
from data_registry.source_cards import load_card
from tests.data_registry.fake_scans import make_folder

PATIENTS = 10
Files = dict[str, str]


def amos(number: int) -> Files:
    part, name = ("Va", "Tr")[number > 1], f"amos_{507 + number:04d}.nii.gz"
    return {f"images{part}/{name}": "nifti", f"labels{part}/{name}": "label 1 6 10 11"}


def qin(number: int) -> Files:
    files = {}
    for visit in (1, 2):
        study = f"PCAMPMRI-{number:05d}/1.3.6.1.4.1.14519.{number}.{visit}"
        files[f"{study}/MR_1.3.6.1.4.1.{visit}1/*.dcm"] = f"dicom PCAMPMRI-{number:05d}"
        names = "Prostate Peripheral_zone"
        files[f"{study}/SEG_1.3.6.1.4.1.{visit}2/seg.dcm"] = f"seg MR_1.3.6.1.4.1.{visit}1 {names}"
    return files


def isbi(number: int) -> Files:
    name = f"Prostate3T-01-{number:04d}"
    return {
        f"prostate_3t/{name}/1.3.6.1.{number}/MR_1.3.6.1.{number}.1/*.dcm": f"dicom {name}",
        f"NCI-ISBI/Training/{name}.nrrd": "label 1 2",
    }


def spider(number: int) -> Files:
    return {
        f"{kind}/{number}_{sequence}.mha": what
        for sequence in ("t1", "t2")
        for kind, what in (("images", "nifti"), ("masks", "label 1 2 100 201"))
    }


def hvsmr(number: int) -> Files:
    name = f"cropped/pat{number}_cropped"
    return {f"{name}.nii.gz": "nifti", f"{name}_seg.nii.gz": "label 1 2 3 4 5 6 7 8"}


def liver(number: int) -> Files:
    name = f"nifti_and_segms/TCGA-BC-{4000 + number}/02-21-2000"
    drawn = ("rater1_liver", "rater2_liver", "rater1_tumor1", "rater1_tumor2", "rater2_tumor1")
    return {
        f"{name}/art.nii.gz": "nifti",
        **{f"{name}/{mask}.nii.gz": "label 1" for mask in drawn},
    }


def thigh(number: int) -> Files:
    if number % 2:
        return {
            f"MyoSegmenTUM/Fat/HV{number:03d}_1_0000.nii.gz": "nifti",
            f"MyoSegmenTUM/Label/HV{number:03d}_1.nii.gz": "label 1 2 11",
        }
    return {
        f"Training/Fat/THIGH_{number:03d}_0000.nii.gz": "nifti",
        f"Training/T1/THIGH_{number:03d}_0002.nii.gz": "nifti",
        f"Training/Label/THIGH_{number:03d}.nii.gz": "label 1 2 11",
    }


def hand(number: int) -> Files:
    return {
        f"mri/{number:05d}.nii": "nifti",
        f"masks/{number:05d}_bonemuscle.nii": "label 1 2",
    }


SETS: dict[str, Callable[[int], Files]] = {
    "amos": amos, "qin_prostate_repeatability": qin, "nci_isbi_2013": isbi, "spider": spider,
    "hvsmr2": hvsmr, "liver_hcc_seg": liver, "mmthigh": thigh, "piano_hand": hand,
}  # fmt: skip
TASKS = {
    "amos-liver", "amos-pancreas", "amos-spleen", "prostate", "spider", "hvsmr-chamber",
    "hvsmr-vessel", "liver-hcc-tumor", "mmthigh", "piano-hand",
}  # fmt: skip


@pytest.fixture(scope="module")
def all_sets(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Every data set in one registry, each by the command of its user."""
    folder = tmp_path_factory.mktemp("mri_core_13")
    key = folder / "fixed.key"
    key.write_text("5a" * 32 + "\n")
    key.chmod(0o600)
    path = folder / "reg"
    Registry.create(path, fractions=(0.4, 0.3, 0.3))
    for name, files_of in SETS.items():
        root = folder / name
        for number in range(1, PATIENTS + 1):
            make_folder(root, files_of(number))
        words = ["--sources", name, "--root", str(root), "--key-file", str(key), "--jobs", "1"]
        assert main(["data", "ingest", *words, "--registry", str(path), "--strict"]) == 0
    return Registry.open(path)


@pytest.fixture
def words(all_sets: Registry, weights: Path, tmp_path: Path) -> list[str]:
    return [
        "evaluate", "mri_core_13", "--registry", str(all_sets.path), "--out", str(tmp_path / "out"),
        "--weights.mri-core", str(weights), "--device", "cpu", "--steps", "1", "--draws", "1",
        "--k", "1", "--recipe.image-size", "32", "--recipe.num-validation", "1",
        "--recipe.num-levels", "2", "--recipe.head-width", "8", "--recipe.augmented-copies", "0",
    ]  # fmt: skip


@pytest.mark.slow
def test_dry_run_tells_every_task(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert all(f"task {name}: train" in told for name in TASKS)
    assert "20 cells" in told  # ten tasks, the encoder and its random twin


@pytest.mark.slow
@pytest.mark.usefixtures("few_resamples")
def test_a_tiny_cell_of_each(words: list[str], tmp_path: Path) -> None:
    assert main(words) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not results["failed"]
    assert {cell["task"] for cell in results["cells"]} == TASKS
    structures = {cell["task"]: cell["structure"] for cell in results["cells"]}
    assert structures["spider"] == "lumbar spine"
    assert structures["liver-hcc-tumor"] == "liver tumor"


def test_the_cards_exist() -> None:
    for name in SETS:
        assert load_card(name).name == name
