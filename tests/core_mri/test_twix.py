"""Siemens `.dat`, on files that twixtools writes: no scanner's own file may be shipped."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core_mri.errors import CoreMRIError
from core_mri.files.kspace import read_kspace
from core_mri.physics import fft2c, ifft2c

pytest.importorskip("twixtools")

PROTOCOL = """### ASCCONV BEGIN ###
sKSpace.lBaseResolution = 10
sKSpace.lPhaseEncodingLines = 8
sSliceArray.asSlice[0].dReadoutFOV = 250.0
sSliceArray.asSlice[0].dPhaseFOV = 200.0
sSliceArray.asSlice[0].dThickness = 5.0
alTE[0] = 12000
alTR[0] = 500000
### ASCCONV END ###
"""


def header(protocol: str = PROTOCOL) -> np.ndarray:
    """A measurement header with the buffers that are looked at."""
    buffers = b""
    for name, text in (("Config", ""), ("Dicom", ""), ("Meas", ""), ("MeasYaps", protocol)):
        buffers += name.encode() + b"\0" + struct.pack("<I", len(text)) + text.encode()
    buffers += bytes(48)  # the parser looks ahead
    return np.frombuffer(struct.pack("<II", 8 + len(buffers), 4) + buffers, dtype="<S1")


def block(samples: np.ndarray, *, flags: tuple[str, ...] = (), center: int | None = None,
          position: float = 0.0, **counter: int) -> Any:  # fmt: skip
    from twixtools.mdb import Mdb_local

    made = Mdb_local(samples)
    made.mdh.CenterCol = samples.shape[1] // 2 if center is None else center
    made.mdh.CenterLin = 4
    made.mdh.SliceData.SlicePos.Tra = position
    for name, value in counter.items():
        setattr(made.mdh.Counter, name, value)
    for flag in flags:
        made.set_flag(flag, True)
    return made


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((*shape, 2)).astype(np.float32).view(np.complex64)[..., 0]


def write(path: Path, blocks: list[Any], protocol: str = PROTOCOL) -> Path:
    import twixtools

    twixtools.write_twix({"mdb": blocks, "hdr_str": header(protocol)}, str(path))
    return path


class TestRead:
    def test_lines_slices_averages_and_what_is_no_image(self, tmp_path: Path) -> None:
        grids = draw(2, 2, 3, 10, 8)  # slice, average, coil, readout, line
        blocks = [
            block(grids[s, a, :, :, line], Lin=line, Sli=s, Ave=a, position=-5.0 * s)
            for a in range(2) for s in range(2) for line in range(8) if line != 6
        ]  # fmt: skip
        blocks.insert(0, block(draw(3, 10, seed=9), flags=("NOISEADJSCAN",)))
        with read_kspace(write(tmp_path / "a.dat", blocks)) as kspace:
            assert kspace.shape == (2, 3, 10, 8)
            expected = grids.mean(axis=1)
            expected[..., 6] = 0
            for k in range(2):  # slice 1 lies lower, so it comes first
                np.testing.assert_allclose(kspace.read_slice(k), expected[1 - k], atol=1e-6)
            assert kspace.mask().tolist() == [True] * 6 + [False, True]
            assert kspace.header.encoded_fov_mm == (250, 200, 5)
            assert kspace.header.facts["EchoTime"] == pytest.approx(12)
            assert kspace.header.facts["RepetitionTime"] == pytest.approx(500)

    def test_oversampling_reflection_and_repetitions(self, tmp_path: Path) -> None:
        image = np.zeros((2, 20, 8), np.complex64)
        image[:, 5:15] = draw(2, 10, 8)
        grid = fft2c(torch.from_numpy(image)).numpy()
        blocks = []
        for repetition in range(2):
            for line in range(8):
                samples = (repetition + 1) * grid[:, :, line]
                reflected = ("REFLECT",) if line % 2 else ()
                samples = samples[:, ::-1] if reflected else samples
                blocks.append(block(samples, flags=reflected, Lin=line, Rep=repetition))
        with read_kspace(write(tmp_path / "a.dat", blocks)) as kspace:
            assert (kspace.shape, kspace.num_volumes) == ((1, 2, 10, 8), 2)
            got = kspace.read_slice(0, 1)
            back = ifft2c(torch.from_numpy(got)).numpy()
            np.testing.assert_allclose(back, 2 * image[:, 5:15], atol=1e-5)

    def test_partial_echo(self, tmp_path: Path) -> None:
        grid = draw(2, 10, 8)
        blocks = [block(grid[:, 3:, line], center=2, Lin=line) for line in range(8)]
        with read_kspace(write(tmp_path / "a.dat", blocks)) as kspace:
            got = kspace.read_slice(0)
        np.testing.assert_array_equal(got[:, 3:], grid[:, 3:])
        assert not got[:, :3].any()


class TestRefused:
    def test_codes(self, tmp_path: Path) -> None:
        lines = [block(draw(2, 10), Lin=line) for line in range(8)]
        whole = write(tmp_path / "a.dat", lines).read_bytes()
        cases = {
            "text": (b"Dear colleague" * 1000, ("DATA-02", "DATA-03")),
            "short": (whole[:500], ("DATA-02",)),
            "cut": (whole[: 10240 + (len(whole) - 10240) // 2], ("DATA-02",)),
        }
        for name, (content, codes) in cases.items():
            path = tmp_path / f"{name}.dat"
            path.write_bytes(content)
            with pytest.raises(CoreMRIError) as caught:
                read_kspace(path)
            assert caught.value.code in codes, name
        three = [block(draw(2, 10), Lin=line, Par=1) for line in range(8)]
        with pytest.raises(CoreMRIError, match=r"DATA-14.*siemens_to_ismrmrd"):
            read_kspace(write(tmp_path / "3d.dat", three))
        empty = [block(draw(2, 10), flags=("NOISEADJSCAN",))]
        with pytest.raises(CoreMRIError, match="DATA-10"):
            read_kspace(write(tmp_path / "noise.dat", empty))

    def test_without_twixtools(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.dat").write_bytes(bytes(20000))
        monkeypatch.setitem(sys.modules, "twixtools", None)
        with pytest.raises(CoreMRIError, match=r"CONFIG-06.*core-mri\[twix\].*siemens_to_ismrmrd"):
            read_kspace(tmp_path / "a.dat")
