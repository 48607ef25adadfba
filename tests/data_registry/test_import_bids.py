"""BIDS in: subjects, sessions, sequences, sidecars, labels, licence; and what we exported."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from core_mri.__main__ import main
from core_mri.errors import ConfigError
from core_mri.files.nifti import write_nifti
from core_mri.physics.phantoms import phantom_volume
from data_registry import IngestConfig, Registry, ingest
from data_registry.export import ExportConfig, export
from data_registry.import_bids import SEQUENCES, bids_facts, bids_sources, licence_of
from data_registry.label_words import sequences


def image(root: Path, name: str, number: int = 0, *, label: bool = False) -> None:
    volume = phantom_volume("brain", number, "T1", size=32, num_slices=4)[int(label)]
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(volume, path)


def text(root: Path, name: str, content: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two subjects, of whom one has two sessions; names that could mislead are in the way."""
    root = tmp_path / "patient99"
    text(root, "dataset_description.json", {"Name": "Example", "License": "CC BY 4.0"})
    people = "participant_id\tage\tsex\nsub-01\t34\tF\nsub-02\t95\tmale\nsub-03\tn/a\tn/a\n"
    text(root, "participants.tsv", people)
    image(root, "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz", 0)
    image(root, "sub-01/ses-b/anat/sub-01_ses-b_ce-gd_T1w.nii.gz", 1)
    image(root, "sub-02/anat/sub-02_acq-case_7_FLAIR.nii.gz", 2)
    image(root, "sub-02/pet/sub-02_pet.nii.gz", 3)
    image(root, "derivatives/segment/sub-02/anat/sub-02_desc-x_dseg.nii.gz", 2, label=True)
    image(root, "derivatives/prep/sub-02/anat/sub-02_desc-preproc_T1w.nii.gz", 4)
    text(root, "derivatives/segment/dataset_description.json", {"Name": "d"})
    text(root, "derivatives/segment/sub-02/anat/sub-02_desc-x_dseg.tsv",
         "index\tname\n1\tskull\n2\tgray matter\n3\t=;x\n")  # fmt: skip
    text(root, "T1w.json", {"MagneticFieldStrength": 1.5, "EchoTime": 0.01, "PatientName": "Zq^A"})
    text(root, "sub-01/ses-b/sub-01_ses-b_T1w.json", {"EchoTime": 0.003, "Manufacturer": "GE"})
    text(root, "sub-02/anat/sub-02_FLAIR.json",
         {"InversionTime": 2.5, "ImageType": ["ORIGINAL", "PRIMARY"]})  # fmt: skip
    text(root, "sub-02/anat/sub-02_acq-other_FLAIR.json", {"InversionTime": 9})
    return root


def take(root: Path, registry: Path, key_file: Path, **given: str) -> Registry:
    sources = bids_sources(root, **given)
    ingest(IngestConfig(registry=registry, sources=sources, key_file=key_file, jobs=1))
    return Registry.open(registry)


class TestImport:
    def test_subjects_sessions_sequences_labels(
        self, root: Path, tmp_path: Path, key_file: Path
    ) -> None:
        registry = take(root, tmp_path / "reg", key_file)
        rows = registry.volumes()
        assert Counter((row.role, row.sequence) for row in rows if row.role == "image") == {
            ("image", "T1"): 1, ("image", "T1 contrast"): 1, ("image", "FLAIR"): 1,
        }  # fmt: skip
        assert {(row.source, row.licence) for row in rows} == {("Example", "CC-BY-4.0")}
        flair = next(row for row in rows if row.sequence == "FLAIR")
        one, two = (row for row in rows if row.sequence.startswith("T1"))
        assert one.subject_id == two.subject_id != flair.subject_id
        assert one.study_id != two.study_id
        assert flair.study_id not in ("", one.study_id, two.study_id)
        (label,) = registry.labels_of(flair)
        assert json.loads(label.facts)["LabelNames"] == "1=skull;2=gray matter"
        assert label.subject_id == flair.subject_id

    def test_facts_of_sidecars_and_participants(
        self, root: Path, tmp_path: Path, key_file: Path
    ) -> None:
        rows = {row.sequence: row for row in take(root, tmp_path / "reg", key_file).volumes()}
        first, second, flair = (
            json.loads(rows[name].facts) for name in ("T1", "T1 contrast", "FLAIR")
        )
        assert first["EchoTime"] == 10.0
        assert (first["PatientSex"], first["PatientAge"]) == ("F", "034Y")
        assert rows["T1"].field_strength_t == 1.5
        assert (second["EchoTime"], rows["T1 contrast"].vendor) == (3.0, "ge")  # deeper wins
        assert flair["InversionTime"] == 2500.0  # the other acquisition's does not apply
        assert (flair["PatientSex"], flair["PatientAge"]) == ("M", "090Y")
        assert not any("Zq" in row.facts for row in rows.values())

    def test_the_command_needs_no_source_and_licence(
        self, root: Path, tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["data", "ingest", str(root), "--registry", str(tmp_path / "reg")]
        assert main([*words, "--key-file", str(key_file), "--jobs", "1", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["registry"]["by_source"] == {"Example": 3}
        assert main([*words, "--key-file", str(key_file), "--licence", "CC0-1.0"]) == 2
        assert "CONFIG-05" in capsys.readouterr().err

    @pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100000, "\xff"])
    def test_damaged_sidecars_cost_their_facts_only(
        self, root: Path, tmp_path: Path, key_file: Path, content: str
    ) -> None:
        (root / "sub-02/anat/sub-02_FLAIR.json").write_text(content, encoding="latin-1")
        rows = take(root, tmp_path / "reg", key_file).volumes("sequence = 'FLAIR'")
        assert len(rows) == 1
        assert "InversionTime" not in json.loads(rows[0].facts)

    def test_a_description_that_says_too_little(self, root: Path) -> None:
        text(root, "dataset_description.json", {"Name": "Example"})
        with pytest.raises(ConfigError, match=r"CONFIG-01.*no licence"):
            bids_sources(root)
        assert bids_sources(root, licence="unknown")[0].licence == "unknown"
        text(root, "dataset_description.json", "[]")
        with pytest.raises(ConfigError, match="CONFIG-01"):
            bids_sources(root)

    def test_facts_of_a_file_without_any(self, root: Path) -> None:
        path = root / "sub-03" / "anat" / "sub-03_PDw.nii.gz"
        assert set(bids_facts(root, path)) == {"StudyInstanceUID"}


class TestNames:
    def test_every_sequence_is_in_the_vocabulary(self) -> None:
        assert set(SEQUENCES.values()) <= set(sequences())

    @pytest.mark.parametrize(
        ("said", "meant"),
        [
            ("CC0", "CC0-1.0"), ("cc0 1.0 universal", "CC0-1.0"), ("PDDL", "PDDL-1.0"),
            ("CC BY-NC-SA 4.0", "CC-BY-NC-SA-4.0"), ("cc-by-4.0", "CC-BY-4.0"), ("MIT", "MIT"),
            ("CC-BY-4.0 AND CC0-1.0", "CC-BY-4.0 AND CC0-1.0"), ("", ""),
            ("LicenseRef-mine", "LicenseRef-mine"),
        ],
    )  # fmt: skip
    def test_licences(self, said: str, meant: str) -> None:
        assert licence_of(said) == meant

    @pytest.mark.parametrize("said", ["CC BY", "free for all", "CC0 but ask us first"])
    def test_other_words_are_a_hash_of_which_nothing_is_known(self, said: str) -> None:
        assert licence_of(said).startswith("sha256:")


class TestRoundTrip:
    def test_what_was_exported_comes_back(
        self, registry: Registry, tmp_path: Path, key_file: Path
    ) -> None:
        out = tmp_path / "bids"
        export(ExportConfig(registry=registry.path, out=out, format="bids"))
        back = take(out, tmp_path / "back", key_file, name="back")

        def voxels(of: Registry) -> dict[tuple[object, ...], list[bytes]]:
            found: dict[tuple[object, ...], list[bytes]] = {}
            for row in of.volumes():
                volume = of.read(row).reorient("RAS")
                key = (row.role, row.licence, row.num_slices)
                found.setdefault(key, []).append(np.ascontiguousarray(volume.array).tobytes())
            return {key: sorted(arrays) for key, arrays in found.items()}

        assert voxels(back) == voxels(registry)

        def patients(of: Registry) -> list[tuple[tuple[str, str, str, int], ...]]:
            own: dict[str, list[tuple[str, str, str, int]]] = {}
            for row in of.volumes():
                pairs = len(of.labels_of(row)) if row.role == "image" else 0
                own.setdefault(row.subject_id, []).append(
                    (row.role, row.region, row.sequence if row.role == "image" else "", pairs)
                )
            return sorted(tuple(sorted(volumes)) for volumes in own.values())

        assert patients(back) == patients(registry)
        assert back.stats()["quarantined"] == {}

    def test_labels_keep_their_names_and_odd_sequences_theirs(
        self, tmp_path: Path, run_ingest, save, key_file: Path
    ) -> None:
        save(tmp_path / "in" / "patient1" / "scan.nii.gz", "brain", 0)
        save(tmp_path / "in" / "patient1" / "scan_mask.nii.gz", "brain", 0, label=True)
        source = {"sequence": "MT", "region": "knee", "label_values": dict.fromkeys(range(9), "x")}
        run_ingest(tmp_path / "reg", tmp_path / "in", source=source)
        out = tmp_path / "bids"
        export(ExportConfig(registry=tmp_path / "reg", out=out, format="bids"))
        back = take(out, tmp_path / "back", key_file)
        (row,) = back.volumes("role = 'image'")
        assert (row.sequence, row.region) == ("MT", "knee")
        (label,) = back.labels_of(row)
        assert "1=x" in json.loads(label.facts)["LabelNames"]
