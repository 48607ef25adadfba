"""Labels of volumes: right on real files, honest when nothing is known."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from pydicom.sr.codedict import Collection

from core_mri.errors import ConfigError
from core_mri.volume import FactValue, Volume
from data_registry.deidentify.facts import NUMBERS, TEXTS, deidentify_facts
from data_registry.label_words import (
    around,
    find_contrast,
    find_plane,
    find_region,
    find_sequence,
    regions,
    sequences,
)
from data_registry.labels import Labels, label_volume
from data_registry.region_codes import region_codes
from data_registry.vocabulary import is_technical, read_table, table, words
from data_registry.voting import RELIABILITY, vote

VOXELS = Volume(np.arange(64.0).reshape(4, 4, 4), np.diag([1.0, 1.0, 5.0, 1.0]))
KEYWORDS = sorted(NUMBERS | TEXTS | {"ScanningSequence", "SequenceVariant", "StudyInstanceUID"})


def label(facts: Mapping[str, FactValue] | None = None, /, **hints: str) -> Labels:
    return label_volume(facts or {}, VOXELS, hints)


def facts_of(path: Path) -> dict[str, FactValue]:
    import pydicom

    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
        facts: dict[str, FactValue] = {}
        for keyword in KEYWORDS:
            value = dataset.get(keyword)
            if value in (None, ""):
                continue
            if keyword in NUMBERS:
                facts[keyword] = float(value)
            else:
                facts[keyword] = value if isinstance(value, str) else "\\".join(map(str, value))
        if "PulseSequenceName" in dataset:
            facts["SequenceName"] = str(dataset.PulseSequenceName)
    return facts


def package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


# Judged by hand from headers, file names and the notes that come with the data; few pictures were
# looked at. The vocabularies were written with these files at hand: this guards against regression
# and does not measure accuracy on unseen scanners.
PACKAGED = [
    ("pydicom", "data/test_files/MR_small.dcm", "unknown", "T2"),
    ("pydicom", "data/test_files/dicomdirtests/98892003/MR1/15820", "neck", "localizer"),
    ("pydicom", "data/test_files/dicomdirtests/98892003/MR1/4919", "brain", "localizer"),
    ("pydicom", "data/test_files/dicomdirtests/98892003/MR1/5641", "brain", "localizer"),
    ("pydicom", "data/test_files/dicomdirtests/98892003/MR2/6273", "brain", "localizer"),
    ("pydicom", "data/test_files/dicomdirtests/98892003/MR700/4467", "brain", "MRA"),
    ("pydicom", "data/test_files/examples_overlay.dcm", "liver", "DCE"),
    ("nibabel", "nicom/tests/data/0.dcm", "brain", "DWI"),
    ("nibabel", "nicom/tests/data/1.dcm", "brain", "DWI"),
    ("nibabel", "nicom/tests/data/siemens_dwi_1000.dcm.gz", "brain", "DWI"),
    ("nibabel", "nicom/tests/data/csa_slice_norm.dcm", "unknown", "EPI/BOLD"),
    ("nibabel", "nicom/tests/data/decimal_rescale.dcm", "brain", "unknown"),
    ("nibabel", "nicom/tests/data/philips_mprage.dcm.gz", "head", "T1"),  # a phantom; header: orbit
    ("nibabel", "nicom/tests/data/slicethickness_empty_string.dcm", "brain", "TOF"),
]
DEMO = [  # pydicom-data comes with the `demo` extra only
    ("MR2_J2KI.dcm", "shoulder", "T1"),
    ("emri_small.dcm", "head", "T1"),
    ("MR-SIEMENS-DICOM-WithOverlays.dcm", "liver", "DCE"),
]
SHARED_DICOM = [
    ("brain_tcia_btp003/t1post_dicom/000000.dcm", "brain", "T1 contrast"),
    ("dicom/ge_head_pd_series/brain_002.dcm", "brain", "PD"),
    ("dicom/ge_neck_flair_implicit.dcm", "head", "FLAIR"),  # it shows the skull base
    ("dicom/headers_noise_pixels/hyperfine_enhanced.dcm", "unknown", "FLAIR"),
    ("dicom/headers_noise_pixels/philips_enhanced_fmri.dcm", "unknown", "EPI/BOLD"),
    ("dicom/hitachi_shoulder/001.dcm", "shoulder", "PD"),
    ("dicom/philips_heart_cine_16frames.dcm", "heart", "cine"),
    ("dicom/philips_shoulder_jpegls_near.dcm", "shoulder", "T1"),
    ("dicom/siemens_dwi_1000_header.dcm.gz", "brain", "DWI"),
    ("dicom/siemens_mip_j2k.dcm", "brain", "TOF"),
    ("dicom/siemens_mosaic_axasc35.dcm", "unknown", "EPI/BOLD"),
    (
        "dicom/siemens_prisma_fieldmap_phantom.dcm",
        "brain",
        "field map",
    ),  # wrong: a phantom; the header says brain
    ("knee_mese/echo1_slice00.dcm", "knee", "PD"),
    ("prostate_prostatex0000/adc/1-01.dcm", "prostate", "ADC"),
    ("prostate_prostatex0000/t2_tra/1-01.dcm", "prostate", "T2"),
]
SHARED_NIFTI = [
    ("abdomen_kidney/test_sub_01.nii.gz", "kidney", "unknown"),
    ("abdomen_totalseg/example_mr_sm.nii.gz", "abdomen", "unknown"),
    ("brain_icbm152/t1.nii.gz", "brain", "T1"),
    ("brain_ms_lesion/patient07/flair.nii.gz", "brain", "FLAIR"),
    ("brain_ms_lesion/patient19/t2.nii.gz", "brain", "T2"),
    ("brain_tcia_btp003/flair_reg.nii.gz", "brain", "FLAIR"),
    ("spinalcord_sct/dmri/dwi_mean.nii.gz", "spine", "DWI"),
    ("spinalcord_sct/mt/mt1.nii.gz", "spine", "MT"),
    ("spinalcord_sct/t1/t1w.nii.gz", "spine", "T1"),
    ("spinalcord_sct/t2s/t2s_uncropped.nii.gz", "spine", "T2*"),
]


class TestRealFiles:
    @pytest.mark.parametrize(("name", "path", "region", "sequence"), PACKAGED)
    def test_packaged(self, name: str, path: str, region: str, sequence: str) -> None:
        found = label(facts_of(package(name) / path))
        assert (found.region, found.sequence) == (region, sequence)

    @pytest.mark.parametrize(("name", "region", "sequence"), DEMO)
    def test_demo(self, name: str, region: str, sequence: str) -> None:
        pytest.importorskip("data_store", reason="pydicom-data is not installed")
        found = label(facts_of(package("data_store") / "data" / name))
        assert (found.region, found.sequence) == (region, sequence)

    @pytest.mark.data
    @pytest.mark.parametrize(("path", "region", "sequence"), SHARED_DICOM)
    def test_shared_dicom(self, shared_data: Path, path: str, region: str, sequence: str) -> None:
        found = label(facts_of(shared_data / path), path=path)
        assert (found.region, found.sequence) == (region, sequence)

    @pytest.mark.data
    @pytest.mark.parametrize(("path", "region", "sequence"), SHARED_NIFTI)
    def test_shared_nifti(self, shared_data: Path, path: str, region: str, sequence: str) -> None:
        assert (shared_data / path).is_file()
        found = label(path=path)
        assert (found.region, found.sequence) == (region, sequence)

    @pytest.mark.parametrize(("name", "path"), [row[:2] for row in PACKAGED])
    def test_deidentified_facts_say_the_same(self, name: str, path: str) -> None:
        facts = facts_of(package(name) / path)
        assert label(deidentify_facts(facts, bytes(32))) == label(facts)


class TestUnknown:
    def test_nothing_known(self) -> None:
        found = label()
        assert found == Labels(
            *("unknown", "none", 0.0) * 2,
            *("axial", "geometry", 0.98),
            *("unknown", "none", 0.0),
            vendor="unknown",
            field_strength_t=0.0,
            votes=json.dumps(
                {"region": {}, "sequence": {}, "plane": {"geometry": "axial"}, "contrast": {}},
                sort_keys=True,
            ),
        )

    @pytest.mark.parametrize(
        "facts",
        [
            {"BodyPartExamined": "", "SeriesDescription": "Smith 1"},
            {"EchoTime": 50.0, "RepetitionTime": 1500.0, "ScanningSequence": "SE"},
            {"EchoTime": 2.0, "RepetitionTime": 4.0, "ScanningSequence": "GR"},
            {"EchoTime": "x", "RepetitionTime": 500.0, "ScanningSequence": "SE"},
            {"StudyDescription": "MRA"},
        ],
    )
    def test_no_guess_for_the_sequence(self, facts: dict[str, FactValue]) -> None:
        found = label(facts)
        assert (found.sequence, found.sequence_confidence) == ("unknown", 0.0)


class TestVote:
    def test_a_description_overrules_the_header(self) -> None:
        facts: dict[str, FactValue] = {"BodyPartExamined": "KNEE", "SeriesDescription": "hip"}
        found = label(facts, path="foot.dcm")
        assert (found.region, found.region_by) == ("hip", "description")
        assert json.loads(found.votes)["region"] == {
            "header": "knee", "description": "hip", "path": "foot"
        }  # fmt: skip
        assert label(facts, region="shoulder", path="foot.dcm").region == "shoulder"

    def test_the_order_alone_does_not(self) -> None:
        facts: dict[str, FactValue] = {"BodyPartExamined": "KNEE", "StudyDescription": "MR hip"}
        assert label(facts).region == "knee"
        assert label(facts, path="hip.dcm").region == "hip"

    def test_agreement_raises_and_conflict_lowers(self) -> None:
        alone = label({"BodyPartExamined": "KNEE"})
        agreed = label({"BodyPartExamined": "KNEE", "SeriesDescription": "knee"})
        against = label({"BodyPartExamined": "KNEE", "SeriesDescription": "hip"})
        assert (alone.region, alone.region_confidence) == ("knee", 0.85)
        assert against.region_confidence < 0.95 < agreed.region_confidence < 1.0
        assert agreed.region_by == "description+header"
        header, description = 0.85 / 0.15, 0.95 / 0.05
        together = header * description
        assert agreed.region_confidence == pytest.approx(together / (together + 1), abs=1e-4)
        assert against.region_confidence == pytest.approx(
            description / (description + header + 1), abs=1e-4
        )

    @pytest.mark.parametrize("source", [s for s in RELIABILITY if s != "list"])
    def test_one_source_alone_gives_its_reliability(self, source: str) -> None:
        found = vote({source: "a"}, lambda _: ())
        assert (found.label, found.by) == ("a", source)
        assert found.confidence == pytest.approx(RELIABILITY[source], abs=1e-4)

    def test_the_order_of_votes_does_not_matter(self) -> None:
        votes = {"header": "knee", "study": "hip", "path": "hip", "description": "leg"}
        found = {vote(dict(order), around) for order in itertools.permutations(votes.items())}
        assert len(found) == 1

    def test_an_image_classifier_is_one_more_source(self) -> None:
        def classifier(volume: Volume) -> dict[str, tuple[str, float]]:
            return {"region": ("hip" if volume.array.max() > 1 else "knee", 0.9)}

        facts: dict[str, FactValue] = {"BodyPartExamined": "KNEE"}
        found = label_volume(facts, VOXELS, {}, classifier)
        assert (found.region, found.region_by) == ("hip", "image")
        dark = VOXELS.with_array(np.zeros_like(VOXELS.array))
        assert label_volume(facts, dark, {}, classifier).region_by == "header+image"

    def test_the_inner_region_is_kept(self) -> None:
        found = label({"BodyPartExamined": "ABDOMEN", "SeriesDescription": "liver t1"})
        assert (found.region, found.region_by) == ("liver", "description+header")
        assert label({"BodyPartExamined": "HEAD", "StudyDescription": "Brain"}).region == "brain"

    def test_a_list_is_taken_at_its_word(self) -> None:
        found = label({"BodyPartExamined": "BRAIN"}, region="head", sequence="T1")
        assert (found.region, found.region_confidence) == ("head", 1.0)
        assert label({"ContrastBolusAgent": "Gadovist"}, sequence="T1").sequence == "T1"
        assert label(sequence="T1 contrast").contrast == "yes"

    @pytest.mark.parametrize("kind", ["region", "sequence"])
    def test_every_name_is_a_valid_hint(self, kind: str) -> None:
        for name in regions() if kind == "region" else sequences():
            assert getattr(label(**{kind: name}), kind) == name
            assert getattr(label(**{kind: name.upper()}), kind) == name

    @pytest.mark.parametrize("kind", ["region", "sequence"])
    def test_a_wrong_hint_is_refused(self, kind: str) -> None:
        with pytest.raises(ConfigError, match="none of") as caught:
            label(**{kind: "shoulderr" if kind == "region" else "flairr"})
        assert caught.value.code == "CONFIG-01"
        assert "Perhaps you meant" in str(caught.value)

    def test_the_file_name_counts_before_its_folder(self) -> None:
        assert label(path="knee_t1/t2.nii.gz").sequence == "T2"


class TestWords:
    @pytest.mark.parametrize(
        ("text", "region"),
        [
            ("C-SPINE", "cervical spine"),
            ("LSPINE", "lumbar spine"),
            ("TSPINE", "thoracic spine"),
            ("Lower Leg", "lower leg"),
            ("LOWER_EXTREMITY calf", "lower leg"),
            ("HEADNECK head neck", "head and neck"),
            ("head neck", "head and neck"),
            ("LIVER-KIDNEY", "abdomen"),
            ("knee and ankle", "leg"),
            ("knee and wrist", "extremity"),
            ("abdomen^pelvis", "abdomen"),
            ("head neck brain", "brain"),
            ("HEADNECK", "head and neck"),
            ("Avanto RoutineHead", "head"),
            ("IRM JAMBE GAUCHE", "leg"),
            ("Ressonancia magnetica de pelve", "pelvis"),
            ("MR jamy brzusznej", "abdomen"),
            ("t1_vibe_fs_tra (acr)", "unknown"),
            ("\u0000\ud800'; DROP TABLE volumes; --", "unknown"),
            ("\u0e2a\u0e21\u0e2d\u0e07 \u8111", "unknown"),
            ("BREAT", "breast"),
            ("PLEVIS", "pelvis"),
            ("Knie rechts", "knee"),
            ("Schädel", "head"),
            ("Épaule", "shoulder"),
            ("WHOLE BODY", "whole body"),
            ("abdomen^liver", "liver"),
            ("fetal brain", "fetal"),
            ("thoracic aorta", "chest"),
            ("Thoracic Spine", "thoracic spine"),
            ("kneeling", "unknown"),
            ("ahead", "unknown"),
            ("", "unknown"),
        ],
    )
    def test_regions(self, text: str, region: str) -> None:
        assert find_region([text]) == region

    @pytest.mark.parametrize(
        ("text", "sequence"),
        [
            ("t1_mprage_sag_p2_iso", "T1"),
            ("t1_tse_tra_KM", "T1 contrast"),
            ("B Ax T1 +C", "T1 contrast"),
            ("T1 post GD", "T1 contrast"),
            ("AX T1 W/O CONTRAST", "T1"),
            ("t1 pre contrast", "T1"),
            ("AX T1 FLAIR", "T1"),
            ("AX T2 FLAIR", "FLAIR"),
            ("t2_tirm_tra_dark-fluid", "FLAIR"),
            ("t2_tse_tra", "T2"),
            ("T2W_TSE", "T2"),
            ("t2_haste_cor", "T2"),
            ("SAG STIR", "STIR"),
            ("ep2d_diff_b0_500_1000_ADC", "ADC"),
            ("ep2d_diff_tra", "DWI"),
            ("ep2d_bold_moco", "EPI/BOLD"),
            ("gre_field_mapping", "field map"),
            ("tof_fl3d_tra", "TOF"),
            ("SWI_Images", "SWI"),
            ("t2_fl2d_hemo", "T2*"),
            ("AX SWAN", "SWI"),
            ("CINE_SAX", "cine"),
            ("3-plane LOC", "localizer"),
            ("t1_vibe_fs_tra_dyn", "DCE"),
            ("PD SPAIR cor", "PD"),
            ("Smith", "unknown"),
        ],
    )
    def test_sequences(self, text: str, sequence: str) -> None:
        assert find_sequence([text]) == sequence

    @pytest.mark.parametrize(
        ("inversion_ms", "sequence"), [(160, "STIR"), (2500, "FLAIR"), (700, "unknown")]
    )
    def test_tirm_by_inversion_time(self, inversion_ms: float, sequence: str) -> None:
        assert find_sequence(["tirm_cor"], inversion_ms=inversion_ms) == sequence

    @pytest.mark.parametrize("name", ["regions", "sequences"])
    def test_every_entry_finds_itself(self, name: str) -> None:
        find: Callable[[list[str]], str] = find_region if name == "regions" else find_sequence
        answers = {"contrast", "no contrast", "inversion recovery", "T2*"}
        for entry in table(name):
            if entry.name not in answers and entry.pattern.search(" ".join(words(entry.name))):
                assert find([entry.name]) == entry.name

    def test_every_container_exists(self) -> None:
        names = {entry.name for entry in table("regions")}
        assert {entry.within for entry in table("regions")} - {""} <= names

    @pytest.mark.parametrize(
        ("text", "plane"),
        [("t2_tse_tra", "axial"), ("COR T1", "coronal"), ("3 plane", "unknown"),
         ("cor mpr of sag", "unknown"), ("Sagittal", "sagittal"), ("correction", "unknown")],
    )  # fmt: skip
    def test_planes(self, text: str, plane: str) -> None:
        assert find_plane([text]) == plane

    @pytest.mark.parametrize(
        ("text", "contrast"),
        [("T1 +C", "yes"), ("t1 KM", "yes"), ("t1 pre", "no"), ("AX T1 W/O CONTRAST", "no"),
         ("Cor MPR pre and post", "unknown"), ("T2", "unknown")],
    )  # fmt: skip
    def test_contrast(self, text: str, contrast: str) -> None:
        assert find_contrast([text]) == contrast

    def test_words_of_planes_may_stay_in_descriptions(self) -> None:
        read = read_table("planes")
        assert all(is_technical(word) for entry in read.values() for word in entry["words"])

    def test_the_regions_of_the_plan_are_there(self) -> None:
        wanted = (
            "brain,head,neck,cervical spine,thoracic spine,lumbar spine,shoulder,elbow,wrist,hand,"
            "breast,heart,abdomen,liver,kidney,pelvis,prostate,hip,thigh,knee,lower leg,ankle,foot,"
            "whole body,fetal"
        )
        assert set(wanted.split(",")) <= set(regions())


MRI_CORE = {  # protocols by body location of arXiv 2506.12186; "organ" is a protocol of the abdomen
    "abdomen": "abdomen", "organ": "abdomen", "hip": "hip", "thigh": "thigh", "hand": "hand",
    "pelvis": "pelvis", "breast": "breast", "shoulder": "shoulder", "wrist": "wrist",
    "lower leg": "lower leg", "leg": "leg", "foot": "foot", "knee": "knee",
    "humerus": "upper arm", "ankle": "ankle", "elbow": "elbow", "forearm": "forearm",
    "lumbar spine": "lumbar spine",
}  # fmt: skip


class TestRegions:
    def test_the_locations_of_mri_core(self) -> None:
        assert len(MRI_CORE) == 18
        assert set(MRI_CORE.values()) <= set(regions())
        for name, region in MRI_CORE.items():
            assert find_region([name]) == ("unknown" if name == "organ" else region)

    def test_every_region_has_a_code(self) -> None:
        assert set(region_codes()) == set(regions()) - {"unknown"}
        assert len({(c.scheme, c.value) for c in region_codes().values()}) == len(region_codes())

    def test_every_code_is_in_a_context_group_with_its_meaning(self) -> None:
        groups = {
            (code.scheme_designator, code.value): code.meaning
            for group in ("CID4030", "CID271")
            for code in Collection(group).concepts.values()
        }
        for region, code in region_codes().items():
            assert groups[code.scheme, code.value] == code.meaning, region

    def test_every_defined_term_is_read_as_its_region(self) -> None:
        for region, code in region_codes().items():
            if code.body_part:
                assert find_region([code.body_part]) == region


class TestTiming:
    @pytest.mark.parametrize(
        ("echo", "repeat", "inversion", "kind", "sequence"),
        [
            (12, 500, 0, "SE", "T1"),
            (100, 4000, 0, "SE", "T2"),
            (20, 2500, 0, "SE", "PD"),
            (120, 9000, 2500, "SE\\IR", "FLAIR"),
            (40, 4000, 160, "SE\\IR", "STIR"),
            (20, 600, 0, "GR", "T2*"),
            (30, 3000, 0, "EP", "unknown"),
        ],
    )
    def test_weighting(
        self, echo: float, repeat: float, inversion: float, kind: str, sequence: str
    ) -> None:
        facts: dict[str, FactValue] = {
            "EchoTime": echo,
            "RepetitionTime": repeat,
            "InversionTime": inversion,
            "ScanningSequence": kind,
        }
        found = label(facts)
        assert found.sequence == sequence
        assert found.sequence_by == ("none" if sequence == "unknown" else "timing")

    def test_an_agent_makes_t1_contrast(self) -> None:
        facts: dict[str, FactValue] = {"SeriesDescription": "t1 tse", "ContrastBolusAgent": "Gd"}
        assert label(facts).sequence == "T1 contrast"
        for none in ("NONE", "No contrast", "0", "0.0"):
            without = label(facts | {"ContrastBolusAgent": none})
            assert (without.sequence, without.contrast, without.contrast_by) == (
                "T1", "no", "header"
            )  # fmt: skip
        assert label(facts | {"ContrastBolusAgent": "0.1 mmol/kg"}).contrast == "yes"
        assert label(facts | {"SeriesDescription": "t1 pre"}).sequence == "T1"
        assert label(facts | {"SeriesDescription": "t2 tse"}).sequence == "T2"


class TestScanner:
    @pytest.mark.parametrize(
        ("manufacturer", "vendor"),
        [
            ("SIEMENS", "siemens"),
            ("Siemens Healthineers", "siemens"),
            ("GE MEDICAL SYSTEMS", "ge"),
            ("Philips Medical Systems", "philips"),
            ("TOSHIBA_MEC", "canon"),
            ("Canon Medical Systems", "canon"),
            ("Hitachi Medical Corporation", "fujifilm"),
            ("UIH", "united imaging"),
            ("Hyperfine Research", "hyperfine"),
            ("ACME", "other"),
            ("", "unknown"),
        ],
    )
    def test_vendor(self, manufacturer: str, vendor: str) -> None:
        assert label({"Manufacturer": manufacturer}).vendor == vendor

    @pytest.mark.parametrize(
        ("value", "tesla"),
        [("1.4939999580383", 1.5), (15000, 1.5), (2.89, 2.89), (3, 3.0), (0.064, 0.064), (0, 0.0)],
    )
    def test_field_strength(self, value: FactValue, tesla: float) -> None:
        assert label({"MagneticFieldStrength": value}).field_strength_t == tesla

    def test_plane_is_that_of_the_volume(self) -> None:
        sagittal = Volume(VOXELS.array, np.diag([5.0, 1.0, 1.0, 1.0]))
        assert label_volume({}, sagittal, {}).plane == "sagittal"
        wrong = label_volume({"SeriesDescription": "t1 cor"}, sagittal, {})
        assert (wrong.plane, wrong.plane_by) == ("sagittal", "geometry")
        assert wrong.plane_confidence < 0.98
        assumed = {"assumed_geometry": True, "SeriesDescription": "t1 cor"}
        found = label_volume(assumed, sagittal, {})
        assert (found.plane, found.plane_by, found.plane_confidence) == ("sagittal", "none", 0.0)
