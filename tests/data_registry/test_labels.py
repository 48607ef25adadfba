"""Labels of volumes: right on real files, honest when nothing is known."""

from __future__ import annotations

import gzip
import io
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from core_mri.errors import ConfigError
from core_mri.volume import FactValue, Volume
from data_registry.deidentify.facts import NUMBERS, TEXTS, deidentify_facts
from data_registry.labels import (
    Labels,
    find_region,
    find_sequence,
    label_volume,
    regions,
    sequences,
)
from data_registry.vocabulary import table, words

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
            "unknown", "none", 0.0, "unknown", "none", 0.0, "axial", "unknown", 0.0
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
    def test_order_of_sources(self) -> None:
        facts: dict[str, FactValue] = {"BodyPartExamined": "KNEE", "SeriesDescription": "hip"}
        assert label(facts, path="foot.dcm").region == "knee"
        assert label({"SeriesDescription": "hip"}, path="foot.dcm").region == "hip"
        assert label(facts, region="shoulder", path="foot.dcm").region == "shoulder"

    def test_agreement_raises_and_conflict_lowers(self) -> None:
        alone = label({"BodyPartExamined": "KNEE"}).region_confidence
        agreed = label({"BodyPartExamined": "KNEE", "SeriesDescription": "knee"})
        against = label({"BodyPartExamined": "KNEE", "SeriesDescription": "hip"})
        assert against.region_confidence < alone < agreed.region_confidence < 1.0
        assert agreed.region_by == "header+description"
        # 1 - (1 - 0.8) (1 - 0.7), and 0.8 (1 - 0.7 / 2)
        assert agreed.region_confidence == pytest.approx(0.94)
        assert against.region_confidence == pytest.approx(0.52)

    def test_the_inner_region_is_kept(self) -> None:
        found = label({"BodyPartExamined": "ABDOMEN", "SeriesDescription": "liver t1"})
        assert (found.region, found.region_by) == ("liver", "header+description")
        assert label({"BodyPartExamined": "HEAD", "StudyDescription": "Brain"}).region == "brain"

    def test_a_list_is_taken_at_its_word(self) -> None:
        found = label({"BodyPartExamined": "BRAIN"}, region="head", sequence="T1")
        assert (found.region, found.region_confidence) == ("head", 1.0)
        assert label({"ContrastBolusAgent": "Gadovist"}, sequence="T1").sequence == "T1"

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
            ("HEADNECK head neck", "head"),
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

    def test_the_regions_of_the_plan_are_there(self) -> None:
        wanted = (
            "brain,head,neck,cervical spine,thoracic spine,lumbar spine,shoulder,elbow,wrist,hand,"
            "breast,heart,abdomen,liver,kidney,pelvis,prostate,hip,thigh,knee,lower leg,ankle,foot,"
            "whole body,fetal"
        )
        assert set(wanted.split(",")) <= set(regions())


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
        assert label(facts | {"ContrastBolusAgent": "NONE"}).sequence == "T1"
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
