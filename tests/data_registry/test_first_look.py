"""What a first look at a file must not do (what it tells, test_ingest.py checks)."""

from __future__ import annotations

import zlib
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian

from data_registry.first_look import Header, look_at


def test_a_deflated_bomb_is_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pydicom would make 40 million empty elements of its zeros."""
    path = tmp_path / "bomb.dcm"
    scan = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    scan.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    scan.save_as(path)
    assert look_at([(0, path)])[0][1].patient == str(scan.PatientID)
    content = path.read_bytes()
    end = 128 + 4 + 12 + int.from_bytes(content[140:144], "little")  # of the file meta
    packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(2**24)) for _ in range(20)) + packer.flush()
    path.write_bytes(content[:end] + bomb)
    seen: list[object] = []
    monkeypatch.setattr(pydicom, "dcmread", lambda *_, **__: seen.append(1))
    assert look_at([(0, path)]) == [(0, Header())]
    assert seen == []
