"""NIfTI, BIDS sidecars, ISMRMRD and fastMRI: samples as they are, headers by allow-list."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest

import core_mri
from core_mri.errors import DataError
from data_registry.deidentify.audit import AUDIT
from data_registry.deidentify.cli import main
from data_registry.deidentify.identifiers import patient_pseudonym
from data_registry.deidentify.mrd_xml import rebuild_xml
from data_registry.deidentify.verify_cli import main as verify
from tests.data_registry.deid_corpus.score import found

KEY = bytes(range(32))
TOKENS = ("Zqxvwkab", "Zqhbfdcx", "47114711", "20110213", "2011-02-13", "Zqkliniken")


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Any:
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text(KEY.hex())
    out = tmp_path / "out"

    def deidentify(*words: str) -> list[Path]:
        command = [str(source), str(out), "--key-file", str(key), "--jobs", "1", *words]
        assert main(command) == 0
        return sorted(p for p in out.rglob("*") if p.is_file() and p.name != AUDIT)

    return deidentify


def everything(path: Path) -> bytes:
    content = path.read_bytes()
    return content + (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else b"")


def write_nifti(path: Path, version: int = 1, dtype: str = "int16") -> np.ndarray[Any, Any]:
    array = (np.random.default_rng(0).random((5, 6, 7)) * 900).astype(dtype)
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    image = kind(array, np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header["descrip"] = b"t1 of Zqxvwkab 20110213"
    image.header["aux_file"] = b"Zqhbfdcx"
    image.header["intent_name"] = b"Zqkliniken"
    if version == 1:
        image.header["db_name"], image.header["data_type"] = b"Zqxvwkab", b"47114711"
    for code in (2, 4, 6, 44):
        text = b"\x10\0\x10\0PN\x08\0Zqxvwkab patient 47114711"
        image.header.extensions.append(nib.nifti1.Nifti1Extension(code, text))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return array


class TestNifti:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("version", [1, 2])
    def test_header_extensions_names(
        self, source: Path, run: Any, tmp_path: Path, version: int, suffix: str
    ) -> None:
        original = source / f"sub-Zqxvwkab_Zqhbfdcx_T1w{suffix}"
        array = write_nifti(original, version)
        assert found(TOKENS, everything(original))
        (path,) = run()
        assert found(TOKENS, everything(path) + str(path.relative_to(tmp_path)).encode()) == []
        clean, old = nib.load(path), nib.load(original)
        assert np.array_equal(np.asanyarray(clean.dataobj), array)
        assert np.array_equal(clean.affine, old.affine)
        assert clean.header["descrip"].item() == b"t1 of"
        assert not clean.header.extensions
        assert path.parent.name == patient_pseudonym(KEY, "Zqxvwkab")
        assert verify([str(source), str(tmp_path / "out"), "--jobs", "1"]) == 0

    def test_gzip_names_no_file_and_no_time(self, source: Path, run: Any) -> None:
        image = source / "a.nii"
        write_nifti(image)
        with (
            (source / "b.nii.gz").open("wb") as raw,
            gzip.GzipFile("Zqxvwkab.nii", "wb", 9, raw) as g,
        ):
            g.write(image.read_bytes())
        image.unlink()
        assert b"Zqxvwkab" in (source / "b.nii.gz").read_bytes()[:30]
        (path,) = run()
        head = path.read_bytes()[:10]
        assert head[3] == 0  # no flags: no name, no comment
        assert head[4:8] == bytes(4)  # no time

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_byte_order_and_values_stay(self, source: Path, run: Any, order: str) -> None:
        array = np.arange(24, dtype="int16").reshape(2, 3, 4)
        image = nib.Nifti1Image(array, np.eye(4), nib.Nifti1Header(endianness=order))
        image.header.set_slope_inter(2.5, -7)
        nib.save(image, source / "x.nii")
        (path,) = run()
        clean = nib.load(path)
        assert np.allclose(clean.get_fdata(), nib.load(source / "x.nii").get_fdata())
        assert clean.header.endianness == order

    @pytest.mark.parametrize("keep", [0.2, 0.7, 0.99])
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_cut_off(
        self, source: Path, tmp_path: Path, run: Any, keep: float, suffix: str
    ) -> None:
        write_nifti(source / "good.nii")
        bad = source / f"bad{suffix}"
        write_nifti(bad)
        bad.write_bytes(bad.read_bytes()[: int(bad.stat().st_size * keep)])
        assert len(run()) == 1
        lines = (tmp_path / "out" / AUDIT).read_text().splitlines()[1:]
        bad_code, good_code = (json.loads(line)["code"] for line in lines)
        assert bad_code in ("DATA-02", "DATA-03")  # 03: cut before it can be told
        assert not good_code

    def test_voxels_that_cannot_be(self, source: Path, run: Any, tmp_path: Path) -> None:
        write_nifti(source / "good.nii")
        header = nib.Nifti1Header()
        header.set_data_shape((30000, 30000, 30000))
        header["magic"], header["vox_offset"] = b"n+1", 352
        with gzip.open(source / "bomb.nii.gz", "wb") as stream:
            stream.write(header.binaryblock + bytes(1000))
        assert len(run()) == 1
        lines = (tmp_path / "out" / AUDIT).read_text().splitlines()[1:]
        assert "DATA-13" in [json.loads(line)["code"] for line in lines]

    def test_packed_dicom(self, source: Path, run: Any) -> None:
        from tests.data_registry.deid_corpus.generate import corpus

        file = next(iter(corpus(1, 1)))
        (source / "a.dcm.gz").write_bytes(gzip.compress(file.content))
        (path,) = run()
        assert path.suffix == ".dcm"
        assert found(file.tokens, path.read_bytes()) == []


SIDECAR: dict[str, Any] = {
    "Modality": "MR", "MagneticFieldStrength": 3, "EchoTime": 0.003, "RepetitionTime": 2.3,
    "Manufacturer": "Siemens", "ManufacturersModelName": "Prisma", "FlipAngle": 9,
    "PhaseEncodingDirection": "j-", "SliceTiming": [0.0, 1.1, 0.5], "MTState": False,
    "ScanningSequence": "GR_IR", "ImageType": ["ORIGINAL", "PRIMARY", "M"],
    "SeriesDescription": "t1 Zqxvwkab sag", "ProtocolName": "t1_mprage", "SeriesNumber": 4,
    "PatientName": "Zqxvwkab^Anna", "PatientID": "47114711", "PatientBirthDate": "2011-02-13",
    "PatientSex": "F", "PatientWeight": 71.5, "InstitutionName": "Zqkliniken",
    "InstitutionAddress": "Street 1, Zqhbfdcx", "StationName": "Zqhbfdcx",
    "DeviceSerialNumber": "47114711", "AcquisitionTime": "10:11:12.345000",
    "AcquisitionDateTime": "2011-02-13T10:11:12.345000", "StudyInstanceUID": "1.2.3.47114711",
    "ConversionComments": "by Zqxvwkab", "OperatorsName": "Zqhbfdcx", "Owner": "Zqxvwkab",
    "IntendedFor": "ses-Zqxvwkab/func/x.nii.gz", "dcmmeta": {"PatientName": "Zqxvwkab"},
}  # fmt: skip


class TestSidecar:
    def cleaned(self, source: Path, run: Any, sidecar: dict[str, Any]) -> dict[str, Any]:
        write_nifti(source / "sub-01_T1w.nii.gz")
        (source / "sub-01_T1w.json").write_text(json.dumps(sidecar))
        sidecar_path, image = run()
        assert image.name.removesuffix(".nii.gz") == sidecar_path.name.removesuffix(".json")
        assert found(TOKENS, sidecar_path.read_bytes()) == []
        clean: dict[str, Any] = json.loads(sidecar_path.read_text())
        return clean

    def test_rules_of_attributes(self, source: Path, run: Any, tmp_path: Path) -> None:
        clean = self.cleaned(source, run, SIDECAR)
        for name in (
            "Modality", "MagneticFieldStrength", "EchoTime", "RepetitionTime", "Manufacturer",
            "FlipAngle", "PhaseEncodingDirection", "SliceTiming", "MTState", "ImageType",
            "ProtocolName", "SeriesNumber", "PatientSex", "PatientWeight",
        ):  # fmt: skip
            assert clean[name] == SIDECAR[name], name
        assert clean["SeriesDescription"] == "t1 sag"
        assert clean["StudyInstanceUID"].startswith("2.25.")
        assert verify([str(source), str(tmp_path / "out"), "--jobs", "1"]) == 0

    def test_times_move_together(self, source: Path, run: Any) -> None:
        clean = self.cleaned(source, run, SIDECAR)
        assert clean["AcquisitionTime"] == clean["AcquisitionDateTime"].partition("T")[2]
        assert clean["AcquisitionTime"] != SIDECAR["AcquisitionTime"]

    @pytest.mark.parametrize("text", ["[1, 2]", "{", "", "nul", '"Zqxvwkab"'])
    def test_no_object(self, source: Path, run: Any, tmp_path: Path, text: str) -> None:
        write_nifti(source / "sub-01_T1w.nii")
        (source / "sub-01_T1w.json").write_text(text)
        assert len(run()) == 1
        lines = (tmp_path / "out" / AUDIT).read_text().splitlines()[1:]
        assert json.loads(lines[0])["code"] == "DATA-02"

    def test_json_without_image_is_no_sidecar(self, source: Path, run: Any) -> None:
        write_nifti(source / "sub-01_T1w.nii")
        (source / "patients.json").write_text('{"Zqxvwkab": 1}')
        assert len(run()) == 1


XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<subjectInformation><patientName>Zqxvwkab^Anna</patientName><patientWeight_kg>71.5</patientWeight_kg>
<patientID>47114711</patientID><patientBirthdate>2011-02-13</patientBirthdate>
<patientGender>F</patientGender></subjectInformation>
<studyInformation><studyDate>2011-02-13</studyDate><studyTime>10:11:12</studyTime>
<studyID>47114711</studyID><accessionNumber>47114711</accessionNumber>
<referringPhysicianName>Zqhbfdcx</referringPhysicianName>
<studyDescription>knee Zqxvwkab</studyDescription>
<studyInstanceUID>1.3.12.2.47114711</studyInstanceUID></studyInformation>
<measurementInformation><measurementID>47114711_1</measurementID>
<patientPosition>HFS</patientPosition>
<protocolName>t1 Zqxvwkab</protocolName>
<seriesInstanceUIDRoot>1.3.12.2.47114711.1</seriesInstanceUIDRoot>
</measurementInformation>
<acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor><systemModel>Skyra</systemModel>
<systemFieldStrength_T>2.89</systemFieldStrength_T><receiverChannels>2</receiverChannels>
<coilLabel><coilNumber>1</coilNumber><coilName>Body_18:1:B22</coilName></coilLabel>
<institutionName>Zqkliniken</institutionName><stationName>Zqhbfdcx</stationName>
<deviceID>47114711</deviceID><deviceSerialNumber>47114711</deviceSerialNumber>
</acquisitionSystemInformation>
<experimentalConditions><H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace><matrixSize><x>8</x><y>4</y><z>1</z></matrixSize>
<fieldOfView_mm><x>240</x><y>240</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>8</x><y>4</y><z>1</z></matrixSize>
<fieldOfView_mm><x>240</x><y>240</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>3</maximum><center>2</center>
</kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory></encoding>
<sequenceParameters><TR>500</TR><TE>12</TE><sequence_type>tse</sequence_type></sequenceParameters>
<userParameters><userParameterLong><name>dwellTime_0</name><value>5200</value></userParameterLong>
<userParameterLong><name>patientNumber</name><value>47114711</value></userParameterLong>
<userParameterDouble><name>FOVz</name><value>5.5</value></userParameterDouble>
<userParameterString><name>protocol</name><value>Zqxvwkab</value></userParameterString>
<userParameterBase64><name>yaps</name><value>WnF4dndrYWI=</value></userParameterBase64></userParameters>
<waveformInformation><waveformName>ECG</waveformName><waveformType>ecg</waveformType></waveformInformation>
</ismrmrdHeader>"""


def write_ismrmrd(path: Path) -> None:
    from ismrmrd import hdf5

    with h5py.File(path, "w") as file:
        group = file.create_group("dataset")
        group.attrs["scanned_by"] = "Zqxvwkab"
        group.create_dataset("xml", (1,), h5py.special_dtype(vlen=bytes))[0] = XML.encode()
        rows = np.zeros(8, hdf5.acquisition_dtype)
        chance = np.random.default_rng(1)
        for number, row in enumerate(rows):
            row["head"]["version"] = 1
            row["head"]["number_of_samples"] = 8
            row["head"]["active_channels"] = row["head"]["available_channels"] = 2
            row["head"]["center_sample"] = 4
            row["head"]["acquisition_time_stamp"] = 14_671_234 + 40 * number
            row["head"]["measurement_uid"] = 47114711
            row["head"]["user_int"][0] = 47114711
            row["head"]["idx"]["kspace_encode_step_1"] = number % 4
            row["head"]["idx"]["slice"] = number // 4
            row["data"] = chance.random(32).astype(np.float32)
            row["traj"] = np.zeros(0, np.float32)
        group["data"] = rows
        group["waveforms"] = np.arange(100)
        file["extra"] = "Zqhbfdcx"


class TestIsmrmrd:
    def test_header_rebuilt_samples_kept(self, source: Path, run: Any, tmp_path: Path) -> None:
        original = source / "meas_Zqxvwkab.h5"
        write_ismrmrd(original)
        (path,) = run()
        assert found(TOKENS, path.read_bytes()) == []
        assert str(47114711).encode() not in path.read_bytes()
        assert path.parent.name == patient_pseudonym(KEY, "47114711")
        with h5py.File(path) as clean, h5py.File(original) as old:
            assert set(clean) == {"dataset"}
            assert set(clean["dataset"]) == {"xml", "data"}
            assert not clean["dataset"].attrs
            head = clean["dataset/data"]["head"]
            assert list(head["acquisition_time_stamp"]) == [40 * n for n in range(8)]
            assert not head["measurement_uid"].any()
            assert not head["user_int"].any()
            for new, before in zip(
                clean["dataset/data"]["data"], old["dataset/data"]["data"], strict=True
            ):
                assert np.array_equal(new, before)
        kspace = core_mri.files.kspace.read_kspace(path)
        assert kspace.shape == (2, 2, 8, 4)
        assert verify([str(source), str(tmp_path / "out"), "--jobs", "1"]) == 0

    def test_allow_list(self) -> None:
        clean = rebuild_xml(XML.encode(), KEY)
        xml = clean.xml.decode()
        for kept in (
            "<TR>500</TR>", "<systemModel>Skyra</systemModel>", "<trajectory>cartesian<",
            "<coilName>Body_18:1:B22</coilName>", "<patientWeight_kg>71.5</patientWeight_kg>",
            "<name>dwellTime_0</name>", "<name>FOVz</name>", "<patientPosition>HFS<",
            "<studyDescription>knee</studyDescription>", "<protocolName>t1</protocolName>",
        ):  # fmt: skip
            assert kept in xml, kept
        for gone in ("patientNumber", "userParameterString", "Base64", "waveform", "institution"):
            assert gone not in xml
        assert "2.25." in xml

    def test_fits_the_schema(self) -> None:
        from ismrmrd import xsd

        document = xsd.CreateFromDocument(rebuild_xml(XML.encode(), KEY).xml)
        assert document.subjectInformation.patientID == patient_pseudonym(KEY, "47114711")
        assert document.sequenceParameters.TR == [500]

    @pytest.mark.parametrize(
        ("xml", "code"),
        [
            (b"<a", "DATA-02"),
            (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "DATA-13"),
            (b"x" * (1 << 25), "DATA-13"),
        ],
    )
    def test_hostile_xml(self, xml: bytes, code: str) -> None:
        with pytest.raises(DataError) as caught:
            rebuild_xml(xml, KEY)
        assert caught.value.code == code

    def test_cut_off(self, source: Path, run: Any) -> None:
        write_nifti(source / "good.nii")
        write_ismrmrd(source / "x.h5")
        content = (source / "x.h5").read_bytes()
        (source / "x.h5").write_bytes(content[: len(content) // 2])
        assert len(run()) == 1


class TestFastmri:
    def test_known_datasets_and_attributes(self, source: Path, run: Any, tmp_path: Path) -> None:
        chance = np.random.default_rng(2)
        kspace = (chance.random((3, 2, 8, 4)) + 1j).astype(np.complex64)
        target = chance.random((3, 8, 8)).astype(np.float32)
        with h5py.File(source / "file_Zqxvwkab.h5", "w") as file:
            file.create_dataset("kspace", data=kspace, compression="gzip", chunks=(1, 2, 8, 4))
            file["reconstruction_rss"], file["mask"] = target, np.array([1, 0, 1, 1], bool)
            file["ismrmrd_header"] = XML
            file["notes"] = "Zqxvwkab"
            file.attrs.update(
                acquisition="CORPD_FBK", max=1.5, norm=2.5, patient_id="47114711",
                operator="Zqhbfdcx",
            )  # fmt: skip
        (path,) = run()
        assert found(TOKENS, path.read_bytes()) == []
        with h5py.File(path) as clean:
            assert set(clean) == {"kspace", "reconstruction_rss", "mask", "ismrmrd_header"}
            assert np.array_equal(clean["kspace"][()], kspace)
            assert np.array_equal(clean["reconstruction_rss"][()], target)
            assert dict(clean.attrs) == {
                "acquisition": "CORPD_FBK", "max": 1.5, "norm": 2.5,
                "patient_id": patient_pseudonym(KEY, "47114711"),
            }  # fmt: skip
        assert verify([str(source), str(tmp_path / "out"), "--jobs", "1"]) == 0

    def test_another_layout_is_refused(self, source: Path, run: Any, tmp_path: Path) -> None:
        write_nifti(source / "good.nii")
        with h5py.File(source / "x.h5", "w") as file:
            file["volume"] = np.zeros(4)
        assert len(run()) == 1
        lines = (tmp_path / "out" / AUDIT).read_text().splitlines()[1:]
        assert [json.loads(line)["code"] for line in lines] == ["", "DATA-03"]


def test_own_output_passes_unchanged(source: Path, run: Any, tmp_path: Path) -> None:
    write_nifti(source / "sub-Zqxvwkab_T1w.nii.gz")
    (source / "sub-Zqxvwkab_T1w.json").write_text(json.dumps(SIDECAR))
    write_ismrmrd(source / "meas.h5")
    first = {path.relative_to(tmp_path / "out"): path.read_bytes() for path in run()}
    again = tmp_path / "again"
    words = [str(tmp_path / "out"), str(again), "--key-file", str(tmp_path / "key"), "--jobs", "1"]
    assert main(words) == 0
    second = {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()}
    del second[Path(AUDIT)]
    assert second == first
    assert len(first) == 3


def test_formats_without_rules_are_named(source: Path, run: Any, tmp_path: Path) -> None:
    write_nifti(source / "good.nii")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (source / "a.npy").write_bytes(buffer.getvalue())
    (source / "b.nrrd").write_text("NRRD0004\n")
    assert len(run("--private-log", str(tmp_path / "log"))) == 1
    assert "there are DICOM, NIfTI" in (tmp_path / "log").read_text()
