"""Raw data in a registry: streamed in, streamed out, and never among the images."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from core_mri.errors import CoreMRIError
from data_registry import Registry, SliceDataset
from data_registry.export import ExportConfig, export

HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><subjectInformation><patientName>Planted Name
</patientName><patientID>PLANTED-77</patientID></subjectInformation><experimentalConditions>
<H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions><encoding>
<encodedSpace><matrixSize><x>48</x><y>40</y><z>1</z></matrixSize><fieldOfView_mm><x>480</x><y>200</y>
<z>4</z></fieldOfView_mm></encodedSpace><reconSpace><matrixSize><x>24</x><y>20</y><z>1</z></matrixSize>
<fieldOfView_mm><x>240</x><y>100</y><z>4</z></fieldOfView_mm></reconSpace><encodingLimits>
<kspace_encoding_step_1><minimum>0</minimum><maximum>39</maximum><center>20</center>
</kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory></encoding></ismrmrdHeader>
"""


def samples(seed: int = 0, shape: tuple[int, ...] = (4, 3, 48, 40)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((*shape, 2)).astype(np.float32).view(np.complex64)[..., 0]


def save_raw(path: Path, kspace: np.ndarray, **extra: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = HEADER.replace("\n", "")
        file.attrs.update({"acquisition": "CORPD_FBK", "max": 1.0, "norm": 2.0})
        file.attrs["patient_id"] = "PLANTED-77"
        for name, value in extra.items():
            file[name] = value


@pytest.fixture
def raw(tmp_path: Path, run_ingest, save) -> Registry:
    target = np.arange(4 * 20 * 20, dtype=np.float32).reshape(4, 20, 20)
    save_raw(tmp_path / "in" / "file1000001.h5", samples(), reconstruction_rss=target)
    mask = np.arange(40) % 4 == 0
    masked = samples(1) * mask + 0  # no minus zeros
    save_raw(tmp_path / "in" / "file1000002.h5", masked, mask=mask)
    save(tmp_path / "in" / "patient1" / "t1.nii.gz", "brain", 1)
    run_ingest(tmp_path / "reg", tmp_path / "in")
    return Registry.open(tmp_path / "reg")


class TestStored:
    def test_samples_mask_and_target_are_exact(self, raw: Registry) -> None:
        found = {}
        for row in raw.volumes("role = 'kspace'"):
            assert (row.num_slices, row.rows, row.columns) == (4, 48, 40)
            with raw.read_kspace(row) as kspace:
                assert kspace.shape == (4, 3, 48, 40)
                whole = np.stack([kspace.read_slice(i) for i in range(4)])
                found[kspace.mask() is None or bool(kspace.mask().all())] = whole
                if kspace.target(0) is not None:
                    np.testing.assert_array_equal(
                        kspace.target(1), np.arange(400, 800, dtype=np.float32).reshape(20, 20)
                    )
                assert kspace.header.encoded_matrix == (48, 40, 1)
                assert kspace.header.recon_matrix == (24, 20, 1)
        np.testing.assert_array_equal(found[True], samples())
        np.testing.assert_array_equal(found[False], samples(1) * (np.arange(40) % 4 == 0))

    def test_is_a_role_of_its_own(self, raw: Registry) -> None:
        stats = raw.stats()
        assert (stats["volumes"], stats["kspace"], stats["slices"]) == (1, 2, 4)
        assert len(SliceDataset(raw, split=("train", "val", "test"), min_foreground=0)) == 4
        (one, _) = raw.volumes("role = 'kspace'")
        with pytest.raises(CoreMRIError, match=r"CONFIG-05.*read_kspace"):
            raw.read(one)
        (image,) = raw.volumes("role = 'image'")
        with pytest.raises(CoreMRIError, match=r"CONFIG-05.*image"):
            raw.read_kspace(image)

    def test_facts_are_technical_and_nobody_is_named(self, raw: Registry) -> None:
        for row in raw.volumes("role = 'kspace'"):
            assert json.loads(row.facts)["NumberOfCoils"] == 3
        for path in raw.path.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert b"PLANTED" not in content
                assert b"Planted" not in content

    def test_files_of_one_patient_are_one_subject(self, raw: Registry) -> None:
        assert len({row.subject_id for row in raw.volumes("role = 'kspace'")}) == 1

    @pytest.mark.usefixtures("raw")
    def test_running_again_adds_nothing(self, tmp_path: Path, run_ingest) -> None:
        report = run_ingest(tmp_path / "reg", tmp_path / "in")
        assert (report.volumes_added, report.files_known) == (0, 3)

    @pytest.mark.usefixtures("raw")
    def test_moved_file_is_known(self, tmp_path: Path, run_ingest) -> None:
        before = (tmp_path / "in" / "file1000001.h5").rename(tmp_path / "in" / "moved.h5")
        assert before.exists()
        report = run_ingest(tmp_path / "reg", tmp_path / "in")
        assert (report.volumes_added, report.volumes_known) == (0, 1)

    def test_memory_holds_one_slice(self, tmp_path: Path, run_ingest) -> None:
        import tracemalloc

        kspace = samples(2, (24, 4, 96, 96))
        save_raw(tmp_path / "in" / "big.h5", kspace.astype(np.complex64))
        with h5py.File(tmp_path / "in" / "big.h5", "a") as file:
            del file["ismrmrd_header"]
        size = kspace.nbytes
        del kspace
        tracemalloc.start()
        run_ingest(tmp_path / "reg", tmp_path / "in")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < size / 2


class TestQuarantine:
    @pytest.mark.usefixtures("raw")
    def test_reasons(self, tmp_path: Path, run_ingest) -> None:
        folder = tmp_path / "bad"
        broken = samples()
        broken[1, 0, 0, 0] = np.nan
        save_raw(folder / "nan.h5", broken)
        save_raw(folder / "zero.h5", np.zeros_like(broken))
        folder.joinpath("text.h5").write_text("no HDF5")
        with h5py.File(folder / "other.h5", "w") as file:
            file["images"] = np.zeros((4, 4))
        with h5py.File(folder / "link.h5", "w") as file:
            file["kspace"] = h5py.ExternalLink(str(tmp_path / "in" / "file1000001.h5"), "/kspace")
        report = run_ingest(tmp_path / "reg", tmp_path / "in", folder)
        codes = {reason.split()[0]: n for reason, n in report.quarantined.items()}
        assert codes.pop("DATA-04") == codes.pop("DATA-05") == codes.pop("DATA-13") == 1
        assert sum(codes.values()) == 2
        assert set(codes) <= {"DATA-02", "DATA-03", "DATA-14"}
        assert report.volumes_added == 0

    def test_a_failed_volume_leaves_nothing_in_the_shard(self, tmp_path: Path, run_ingest) -> None:
        broken = samples()
        broken[3, 0, 0, 0] = np.inf
        save_raw(tmp_path / "in" / "a.h5", broken)
        save_raw(tmp_path / "in" / "b.h5", samples(5))
        run_ingest(tmp_path / "reg", tmp_path / "in")
        (row,) = Registry.open(tmp_path / "reg").volumes()
        with h5py.File(tmp_path / "reg" / "shards" / row.shard) as file:
            assert list(file) == [row.dataset]


class TestExport:
    @pytest.mark.parametrize("form", ["fastmri", "ismrmrd"])
    def test_exported_and_ingested_again_it_is_the_same(
        self, form: str, raw: Registry, tmp_path: Path, run_ingest
    ) -> None:
        report = export(
            ExportConfig(registry=raw.path, out=tmp_path / "out", format=form)  # type: ignore[arg-type]
        )
        assert (report.written, report.other_roles) == (2, 1)
        run_ingest(tmp_path / "again", tmp_path / "out")
        again = Registry.open(tmp_path / "again")
        ours, theirs = (
            sorted(row.pixel_hash for row in r.volumes("role = 'kspace'")) for r in (raw, again)
        )
        assert ours == theirs
