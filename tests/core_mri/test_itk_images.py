"""NRRD and MetaImage, in and out, against SimpleITK; and headers that lie."""

from __future__ import annotations

import gzip
import itertools
import zlib
from pathlib import Path

import numpy as np
import pytest

from core_mri.errors import CoreMRIError
from core_mri.files.itk_images import read_itk, write_itk
from core_mri.volume import Volume

SUFFIXES = (".nrrd", ".mha")
CODES = [
    "".join(c) for p in itertools.permutations(["RL", "AP", "SI"]) for c in itertools.product(*p)
]


def oblique(seed: int, *, shear: bool = False) -> np.ndarray:
    """A random rotation with anisotropic spacing and any offset."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * rng.uniform(0.4, 6, 3)
    if shear:
        affine[:3, 2] += 0.2 * affine[:3, 0]
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return affine


def code_of(path: Path, **options: str) -> str:
    with pytest.raises(CoreMRIError) as caught:
        read_itk(path, **options)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    return caught.value.code


def nrrd(folder: Path, *fields: str, data: bytes = b"", name: str = "a.nrrd") -> Path:
    given = {field.partition(":")[0] for field in fields}
    usual = [
        "type: uint8", "dimension: 3", "sizes: 4 5 6", "encoding: raw",
        "space: left-posterior-superior", "space directions: (1,0,0) (0,1,0) (0,0,1)",
        "space origin: (0,0,0)",
    ]  # fmt: skip
    lines = [line for line in usual if line.partition(":")[0] not in given]
    text = "\n".join(["NRRD0004", *lines, *(f for f in fields if not f.endswith(": -"))])
    (folder / name).write_bytes(text.encode() + b"\n\n" + data)
    return folder / name


def metaimage(folder: Path, data: bytes = b"", name: str = "a.mha", **fields: str) -> Path:
    usual = {
        "ObjectType": "Image", "NDims": "3", "DimSize": "4 5 6", "ElementType": "MET_UCHAR",
        "ElementSpacing": "1 1 1", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0",
    }  # fmt: skip
    file = fields.pop("ElementDataFile", "LOCAL")
    lines = {k: v for k, v in {**usual, **fields}.items() if v} | {"ElementDataFile": file}
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    (folder / name).write_bytes(text.encode() + data)
    return folder / name


class TestRoundTrip:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("codes", CODES)
    def test_every_orientation(self, codes: str, suffix: str, tmp_path: Path) -> None:
        array = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
        volume = Volume(array, np.diag([0.7, 1.3, 4.0, 1.0])).reorient(codes)
        write_itk(volume, tmp_path / f"a{suffix}")
        back = read_itk(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(back.array, volume.array)
        np.testing.assert_allclose(back.affine, volume.affine, atol=1e-12)
        assert back.orientation == codes

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("seed", range(4))
    def test_oblique_and_sheared(self, seed: int, suffix: str, tmp_path: Path) -> None:
        array = np.random.default_rng(seed).standard_normal((3, 4, 5))
        volume = Volume(array, oblique(seed, shear=seed % 2 == 1))
        write_itk(volume, tmp_path / f"a{suffix}")
        back = read_itk(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(back.array, array)
        np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize(
        "dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "f2", "?"]
    )
    def test_types(self, dtype: str, suffix: str, tmp_path: Path) -> None:
        array = (np.arange(24).reshape(2, 3, 4) % 2).astype(dtype)
        write_itk(Volume(array, np.eye(4)), tmp_path / f"a{suffix}")
        back = read_itk(tmp_path / f"a{suffix}").array
        expected = {"f2": "f4", "?": "u1"}.get(dtype, dtype)
        assert back.dtype == np.dtype(expected)
        np.testing.assert_array_equal(back, array)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_time_is_the_last_axis(self, suffix: str, tmp_path: Path) -> None:
        array = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
        volume = Volume(array, oblique(3))
        write_itk(volume, tmp_path / f"a{suffix}")
        back = read_itk(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(back.array, array)
        np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9)

    def test_labels_take_the_smallest_type(self, tmp_path: Path) -> None:
        labels = np.array([[[0, 1], [2, 300]]])
        write_itk(Volume(labels, np.eye(4), "label"), tmp_path / "a.nrrd")
        back = read_itk(tmp_path / "a.nrrd", kind="label")
        assert (back.kind, back.array.dtype) == ("label", np.uint16)


class TestAgainstSimpleItk:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_a_point_lies_where_itk_puts_it(self, suffix: str, tmp_path: Path) -> None:
        import SimpleITK as sitk  # noqa: N813

        volume = Volume(np.zeros((3, 4, 5), np.int16), oblique(7))
        write_itk(volume, tmp_path / f"a{suffix}")
        image = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
        for index in [(0, 0, 0), (2, 1, 4), (1, 3, 2)]:
            lps = image.TransformIndexToPhysicalPoint(index)
            ras = (volume.affine @ (*index, 1))[:3]
            np.testing.assert_allclose(lps * np.array([-1, -1, 1]), ras, atol=1e-9)

    @pytest.mark.data
    def test_real_scan_and_label(self, shared_data: Path) -> None:
        """Counts of the labels are those in the README of the data."""
        folder = shared_data / "brain_tumor_pyradiomics"
        image = read_itk(folder / "brain1_image.nrrd")
        label = read_itk(folder / "brain1_label.nrrd", kind="label")
        assert image.shape == (256, 256, 25)
        np.testing.assert_allclose(image.spacing_mm, (0.78125, 0.78125, 6.5))
        assert image.same_grid(label)
        assert int((label.array == 1).sum()) == 4137
        assert int((label.array == 1).any(axis=(0, 1)).sum()) == 7
        breast = read_itk(shared_data / "breast_pyradiomics" / "breast1_label.nrrd", kind="label")
        assert int((breast.array == 1).sum()) == 143


class TestWhatHeadersSay:
    def test_space_right_anterior_superior(self, tmp_path: Path) -> None:
        path = nrrd(
            tmp_path, "space: right-anterior-superior", "space origin: (10,20,30)",
            "space directions: (2,0,0) (0,3,0) (0,0,4)", data=bytes(range(120)),
        )  # fmt: skip
        volume = read_itk(path)
        np.testing.assert_array_equal(volume.affine[:3, 3], (10, 20, 30))
        assert volume.orientation == "RAS"
        assert volume.array[1, 2, 3] == 1 + 2 * 4 + 3 * 20
        assert not volume.facts

    def test_no_space_is_assumed_geometry(self, tmp_path: Path) -> None:
        path = nrrd(tmp_path, "space: -", "space directions: -", "space origin: -",
                    "spacings: 1 2 3", data=bytes(120))  # fmt: skip
        volume = read_itk(path)
        assert volume.facts == {"assumed_geometry": True}
        assert volume.spacing_mm == (1, 2, 3)

    def test_lengths_in_meters(self, tmp_path: Path) -> None:
        path = nrrd(tmp_path, 'space units: "m" "m" "m"', "space origin: (0.1,0,0)",
                    "space directions: (0.001,0,0) (0,0.002,0) (0,0,0.003)",
                    data=bytes(120))  # fmt: skip
        volume = read_itk(path)
        np.testing.assert_allclose(volume.spacing_mm, (1, 2, 3))
        np.testing.assert_allclose(volume.affine[0, 3], -100)

    def test_list_axis_is_time(self, tmp_path: Path) -> None:
        path = nrrd(tmp_path, "dimension: 4", "sizes: 2 4 5 6", "kinds: list domain domain domain",
                    "space directions: none (1,0,0) (0,1,0) (0,0,1)",
                    data=bytes(range(240)))  # fmt: skip
        volume = read_itk(path)
        assert volume.shape == (4, 5, 6, 2)
        assert volume.array[1, 0, 0].tolist() == [2, 3]

    @pytest.mark.parametrize("encoding", ["raw", "gzip", "text"])
    def test_detached_voxels(self, encoding: str, tmp_path: Path) -> None:
        values = np.arange(120, dtype=np.uint8)
        data = {"raw": values.tobytes(), "gzip": gzip.compress(values.tobytes()),
                "text": " ".join(map(str, values)).encode()}[encoding]  # fmt: skip
        (tmp_path / "voxels.bin").write_bytes(data)
        path = nrrd(tmp_path, f"encoding: {encoding}", "data file: voxels.bin", name="a.nhdr")
        np.testing.assert_array_equal(read_itk(path).array.ravel(order="F"), values)

    def test_detached_metaimage(self, tmp_path: Path) -> None:
        (tmp_path / "a.raw").write_bytes(bytes(range(120)))
        path = metaimage(tmp_path, name="a.mhd", ElementDataFile="a.raw")
        assert read_itk(path).array[3, 4, 5] == 119

    def test_metaimage_without_transform_is_assumed(self, tmp_path: Path) -> None:
        path = metaimage(tmp_path, bytes(120), TransformMatrix="", Offset="")
        assert read_itk(path).facts == {"assumed_geometry": True}


class TestHostile:
    @pytest.mark.parametrize(
        "name", ["/etc/hostname", "../secret.raw", "sub/../../secret.raw", "sub/x.raw"]
    )
    def test_voxels_elsewhere(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "secret.raw").write_bytes(bytes(120))
        folder = tmp_path / "in"
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "x.raw").write_bytes(bytes(120))
        assert code_of(nrrd(folder, f"data file: {name}", name="a.nhdr")) == "DATA-13"
        assert code_of(metaimage(folder, name="a.mhd", ElementDataFile=name)) == "DATA-13"

    def test_link_that_leads_out(self, tmp_path: Path) -> None:
        (tmp_path / "secret.raw").write_bytes(bytes(120))
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.raw").symlink_to(tmp_path / "secret.raw")
        path = metaimage(tmp_path / "in", name="a.mhd", ElementDataFile="a.raw")
        assert code_of(path) == "DATA-13"

    def test_lists_and_patterns(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for k in range(6):
            (tmp_path / "in" / f"s{k}.raw").write_bytes(bytes([k] * 20))
        good = metaimage(tmp_path / "in", name="a.mhd", ElementDataFile="s%d.raw 0 5 1")
        assert read_itk(good).array[0, 0].tolist() == [0, 1, 2, 3, 4, 5]
        bad = metaimage(tmp_path / "in", name="b.mhd", ElementDataFile="../s%d.raw 0 5 1")
        assert code_of(bad) == "DATA-13"
        listed = nrrd(tmp_path / "in", "data file: LIST", name="c.nhdr")
        listed.write_bytes(listed.read_bytes().rstrip(b"\n") + b"\n../s0.raw\ns1.raw\n")
        assert code_of(listed) == "DATA-13"

    @pytest.mark.parametrize("size", [2**14, 2**40])
    def test_declared_size_takes_no_memory(self, size: int, tmp_path: Path) -> None:
        import tracemalloc

        raw = nrrd(tmp_path, f"sizes: {size} {size} 100", data=bytes(120))
        packed = nrrd(tmp_path, f"sizes: {size} {size} 100", "encoding: gzip",
                      data=gzip.compress(bytes(1000)), name="b.nrrd")  # fmt: skip
        meta = metaimage(tmp_path, bytes(120), DimSize=f"{size} {size} 100")
        tracemalloc.start()
        assert [code_of(path) for path in (raw, packed, meta)] == ["DATA-02"] * 3
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()

    def test_bomb(self, tmp_path: Path) -> None:
        size = 2**30
        packer = zlib.compressobj(9)
        block = bytes(2**24)
        data = b"".join(packer.compress(block) for _ in range(size // len(block)))
        data += packer.flush()
        assert size / len(data) > 900
        path = metaimage(tmp_path, data, DimSize=f"{2**10} {2**10} {2**10}", CompressedData="True",
                         CompressedDataSize=str(len(data)))  # fmt: skip
        assert code_of(path) == "DATA-13"

    def test_an_honest_empty_label_map_is_read(self, tmp_path: Path) -> None:
        labels = Volume(np.zeros((512, 512, 100), np.uint8), np.eye(4), "label")
        write_itk(labels, tmp_path / "a.nrrd")
        assert (tmp_path / "a.nrrd").stat().st_size < 2**26 / 200
        assert not read_itk(tmp_path / "a.nrrd", kind="label").array.any()


class TestRefused:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_cut_anywhere(
        self, suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        array = np.random.default_rng(0).integers(0, 999, (8, 9, 10)).astype(np.int16)
        write_itk(Volume(array, np.eye(4)), tmp_path / f"a{suffix}")
        whole = (tmp_path / f"a{suffix}").read_bytes()
        for keep in range(0, len(whole) - 8, max(1, len(whole) // 40)):
            (tmp_path / f"a{suffix}").write_bytes(whole[:keep])
            assert code_of(tmp_path / f"a{suffix}")[:4] in ("DATA", "GEOM")
        assert capfd.readouterr().err == ""

    def test_codes(self, tmp_path: Path) -> None:
        full = bytes(120)
        (tmp_path / "text.nrrd").write_text("Dear colleague")
        (tmp_path / "text.mha").write_text("Dear colleague")
        assert code_of(tmp_path / "text.nrrd") == code_of(tmp_path / "text.mha") == "DATA-03"
        assert code_of(tmp_path / "none.nrrd") == "DATA-01"
        assert code_of(nrrd(tmp_path, "sizes: 4 -5 6", data=full)) == "DATA-02"
        assert code_of(nrrd(tmp_path, "type: block", data=full)) == "DATA-03"
        color = ("dimension: 4", "sizes: 3 4 5 2", "kinds: RGB-color domain domain domain",
                 "space directions: none (1,0,0) (0,1,0) (0,0,1)")  # fmt: skip
        assert code_of(nrrd(tmp_path, *color, data=full)) == "DATA-03"
        assert code_of(nrrd(tmp_path, "space directions: -", data=full)) == "GEOMETRY-01"
        assert code_of(metaimage(tmp_path, full, ElementSpacing="")) == "GEOMETRY-01"
        flat = ("dimension: 2", "sizes: 10 12", "space: -", "space directions: -",
                "space origin: -", "spacings: 1 1")  # fmt: skip
        assert code_of(nrrd(tmp_path, *flat, data=full)) == "GEOMETRY-02"

    def test_no_header_text_in_messages(self, tmp_path: Path) -> None:
        path = nrrd(tmp_path, "content: Planted^Name", "sizes: 4 5 x", data=bytes(120))
        with pytest.raises(CoreMRIError) as caught:
            read_itk(path)
        assert "Planted" not in str(caught.value)

    def test_writing(self, tmp_path: Path) -> None:
        color = Volume(np.zeros((2, 2, 2, 3), np.uint8), np.eye(4))
        with pytest.raises(CoreMRIError, match="CONFIG-05"):
            write_itk(color, tmp_path / "a.mha")
        (tmp_path / "file").touch()
        with pytest.raises(CoreMRIError, match="DATA-07"):
            write_itk(color, tmp_path / "file" / "a.nrrd")
        with pytest.raises(CoreMRIError, match="DATA-03"):
            write_itk(Volume(np.full((2, 2, 2), 0.5), np.eye(4), "label"), tmp_path / "a.nrrd")
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
