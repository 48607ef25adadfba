"""Acquisitions of a stream to an ISMRMRD file, which is read as any other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from core_mri.errors import DataError
from core_mri.files.ismrmrd_read import VOLUME_COUNTERS, is_image
from core_mri.files.mrd_header import MrdXml, parse_xml
from core_mri.runs import writing
from downstream.serving.mrd.protocol import Acquisition

_BATCH_BYTES = 1 << 24
_MAX_POINTS = 1 << 28
"""Of one encoding; four times 512 x 512 x 256."""

Volume = tuple[int, ...]


class ScanFile:
    """A file that grows; a context manager.

    Args:
        path: Of the file.
        xml: Header, as it was sent.

    Raises:
        DataError: DATA-02, DATA-13 or DATA-14 for a header that cannot be used.
    """

    def __init__(self, path: Path, xml: bytes) -> None:
        import h5py
        from ismrmrd import hdf5

        self.path = path
        self._header: MrdXml = parse_xml(path, xml)
        if math.prod(self._header.encoded_matrix) > _MAX_POINTS:
            size = " x ".join(map(str, self._header.encoded_matrix))
            raise DataError(
                "DATA-14", f"{path}: its header states a matrix of {size}, more than any scan has."
            )
        self._dtype = hdf5.acquisition_dtype
        with writing(path):
            self._file = h5py.File(path, "w")
            group = self._file.create_group("dataset")
            text = group.create_dataset("xml", (1,), h5py.special_dtype(vlen=bytes))
            text[0] = xml
            self._table = group.create_dataset(
                "data", (0,), self._dtype, maxshape=(None,), chunks=True
            )
        self._waiting: list[Acquisition] = []
        self._bytes = 0
        self._channels = 0
        self.count = 0
        self.heads: dict[Volume, dict[int, Any]] = {}
        """Volume counters -> slice counter -> header of the first readout of an image."""

    def append(self, acquisition: Acquisition) -> None:
        """Take one more.

        Raises:
            DataError: DATA-07 when the disk is full, DATA-14 for one that does not fit the header.
        """
        if is_image(acquisition.head):
            self._check(acquisition.head)
            index = acquisition.head["idx"]
            volume = tuple(int(index[name]) for name in VOLUME_COUNTERS)
            self.heads.setdefault(volume, {}).setdefault(int(index["slice"]), acquisition.head)
        self._waiting.append(acquisition)
        self.count += 1
        self._bytes += acquisition.samples.nbytes + acquisition.trajectory.nbytes
        if self._bytes > _BATCH_BYTES:
            self._flush()

    def _check(self, head: Any) -> None:
        """At once what the reader would find at the end of the scan."""
        kept = int(head["number_of_samples"]) - int(head["discard_pre"]) - int(head["discard_post"])
        matrix = self._header.encoded_matrix
        if not 0 < kept <= matrix[0]:
            raise DataError(
                "DATA-14",
                f"acquisition {self.count}: a readout of {kept} samples; the header states a "
                f"matrix of {matrix[0]} x {matrix[1]} x {matrix[2]}.",
            )
        line = int(head["idx"]["kspace_encode_step_1"])
        place = line - self._header.line_center + matrix[1] // 2
        if not 0 <= place < matrix[1]:
            raise DataError(
                "DATA-14",
                f"acquisition {self.count}: line {line}, outside of the {matrix[1]} lines around "
                f"line {self._header.line_center} that the header states.",
            )
        channels = int(head["active_channels"])
        self._channels = self._channels or channels
        if channels != self._channels:
            raise DataError(
                "DATA-14",
                f"acquisition {self.count}: {channels} coils, after some of {self._channels}.",
            )

    def _flush(self) -> None:
        rows = np.zeros(len(self._waiting), dtype=self._dtype)
        for row, one in enumerate(self._waiting):
            rows["head"][row] = one.head
            rows["traj"][row], rows["data"][row] = one.trajectory, one.samples
        with writing(self.path):
            self._table.resize(len(self._table) + len(rows), axis=0)
            self._table[-len(rows) :] = rows
        self._waiting, self._bytes = [], 0

    def close(self) -> None:
        """Write what waits."""
        if self._waiting:
            self._flush()
        with writing(self.path):
            self._file.close()
