"""A service with a door for MRD, clients in processes of their own, and messages."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import ismrmrd  # noqa: TID253
import numpy as np
from ismrmrd.hdf5 import image_header_dtype  # noqa: TID253

from core_mri.__main__ import main
from tests.downstream.serving_client import Client, ServerProcess

CLIENT = Path(__file__).with_name("mrd_client.py")
IDLE_S = 3


class MrdServer(ServerProcess):
    """A service with a door for MRD."""

    def __init__(self, folder: Path, *words: str) -> None:
        super().__init__(folder, *words, "--mrd", "--mrd-port", "0")
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line.startswith("mrd://"), line
        self.address = line.removeprefix("mrd://")


def foreign() -> dict[str, str]:
    """Variables of a process that cannot import core-mri; the package opens files for writing."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return kept | {"HDF5_USE_FILE_LOCKING": "FALSE"}


def run_client(*words: object, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, str(CLIENT), *map(str, words)],
        capture_output=True, input=stdin, env=foreign(), timeout=120, check=True, cwd="/",
    )  # fmt: skip


class Answer:
    """What a client got."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as kept:
            self.pixels, self.texts = kept["pixels"], kept["texts"].tolist()
            self.heads = kept["heads"].view(image_header_dtype)
            self.meta = [ismrmrd.Meta.deserialize(text) for text in kept["attributes"]]


def stream(path: Path, server: MrdServer, out: Path, *words: str) -> Answer:
    run_client(path, server.address, out / "answer.npz", *words)
    return Answer(out / "answer.npz")


def from_file(source: str, path: Path, out: Path, volume: int = 0) -> np.ndarray:
    """Images ``[slices, readout, phase]`` of the command."""
    target = out / f"{source}{volume}.h5"
    words = ["reconstruct", source, str(path), "--out", str(target), "--volume", str(volume)]
    assert main(words) == 0
    with h5py.File(target) as file:
        return file["reconstruction"][()]


def heads_of(path: Path) -> Any:
    with h5py.File(path) as file:
        return file["dataset/data"].fields("head")[:]


def files_below(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if "sqlite" not in path.name
    }


def streams_open(server: ServerProcess) -> list[Path]:
    """Scratch folders of streams in memory."""
    return list(Path("/dev/shm").glob("core-mri-*/mrd-*"))


def header_of(path: Path) -> bytes:
    with h5py.File(path) as file:
        return bytes(file["dataset/xml"][0])


def config(name: str) -> bytes:
    return struct.pack("<H", 1) + name.encode().ljust(1024, b"\0")


def text(kind: int, content: bytes, claimed: int | None = None) -> bytes:
    length = len(content) if claimed is None else claimed
    return struct.pack("<HI", kind, length) + content


def acquisition(samples: np.ndarray, **changes: Any) -> bytes:
    one = ismrmrd.Acquisition.from_array(samples.astype(np.complex64), center_sample=32)
    for name, value in changes.items():
        setattr(one.idx if hasattr(one.idx, name) else one, name, value)
    return struct.pack("<H", 1008) + one.to_bytes()


CLOSE = struct.pack("<H", 4)
LINE = np.ones((6, 64))


def answer_to(server: MrdServer, content: bytes, *, close: bool = True) -> str:
    """All texts that come back; images are no answer to what must be refused."""
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(content)
        if close:
            connection.shutdown(socket.SHUT_WR)
        back = b""
        while part := connection.recv(1 << 16):
            back += part
    texts = ""
    while len(back) >= 6 and back[:2] == struct.pack("<H", 5):
        (length,) = struct.unpack("<I", back[2:6])
        texts += back[6 : 6 + length].decode()
        back = back[6 + length :]
    assert back in (b"", CLOSE), back[:40]
    return texts


def alive(server: MrdServer, scan: Path, tmp_path: Path) -> None:
    """The next client is answered as if nothing had been."""
    assert Client(server.url).ask("GET", "/ready").status == 200
    assert len(stream(scan, server, tmp_path, "--config", "zero-filled").pixels) == 6


def wait_for_room(server: MrdServer) -> None:
    deadline = time.monotonic() + 20
    while streams_open(server) and time.monotonic() < deadline:
        time.sleep(0.1)
