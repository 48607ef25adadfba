"""MRD streams: clients in processes of their own, and what strangers send."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import ismrmrd  # noqa: TID253
import numpy as np
import pytest
from ismrmrd.hdf5 import image_header_dtype  # noqa: TID253

from core_mri.__main__ import main
from core_mri.errors import ConfigError, ServingError
from core_mri.files import KSpace, write_kspace
from downstream.serving.mrd.connection import do_mrd
from downstream.serving.mrd.open_recon import KEY, check_label, make_label
from downstream.serving.mrd.protocol import Message, MessageReader
from downstream.serving.neighbors import Neighbors, is_allowed
from downstream.serving.orders import MrdWork
from downstream.serving.settings import ServeConfig
from downstream.serving.sources import Served, reconstructing, solver
from tests.downstream.serving_client import OURS, Client, ServerProcess, processes_below
from tests.downstream.test_reconstruct import LPS_AFFINE, line_mask, make_samples, make_scan

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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MrdServer]:
    process = MrdServer(
        tmp_path_factory.mktemp("mrd"), "wavelet", "zero-filled", "--mrd-idle-s", str(IDLE_S),
        "--mrd-clients", "3", "--upload-gb", "0.05",
    )  # fmt: skip
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two volumes of three slices, undersampled, with a position, and a name in the header."""
    samples = np.stack([make_samples(3), make_samples(3) * 0.5])
    mask = line_mask()
    one = make_scan(samples[0], mask, affine=LPS_AFFINE)
    both = KSpace.from_slices(
        header=one.header, shape=one.shape, mask=mask, num_volumes=2,
        read_slice=lambda i, volume: samples[volume, i] * mask,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    write_kspace(both, path, layout="ismrmrd")
    return path


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


class TestStreams:
    @pytest.mark.data
    def test_the_real_file_gives_the_image_of_the_command(
        self, server: MrdServer, shared_data: Path, tmp_path: Path
    ) -> None:
        path = shared_data / "kspace" / "phantom_14ch_R3_ismrmrd.h5"
        got = stream(path, server, tmp_path, "--config", "wavelet", "--waveforms")
        assert got.texts == []
        np.testing.assert_array_equal(
            got.pixels.transpose(0, 2, 1), from_file("wavelet", path, tmp_path)
        )
        (head,) = got.heads
        sent = heads_of(path)[-1]
        for name in ("position", "read_dir", "phase_dir", "slice_dir"):
            np.testing.assert_allclose(head[name], sent[name], atol=1e-3)
        np.testing.assert_allclose(head["field_of_view"], (280, 210, 8), atol=1e-3)
        for name in ("measurement_uid", "patient_table_position", "version"):
            np.testing.assert_array_equal(head[name], sent[name])

    def test_volumes_and_slices_with_their_places(
        self, server: MrdServer, scan: Path, tmp_path: Path
    ) -> None:
        got = stream(scan, server, tmp_path, "--config", "zero-filled")
        assert got.pixels.shape == (6, 56, 64)
        expected = [from_file("zero-filled", scan, tmp_path, volume) for volume in (0, 1)]
        np.testing.assert_array_equal(got.pixels.transpose(0, 2, 1), np.concatenate(expected))
        assert got.heads["repetition"].tolist() == [0, 0, 0, 1, 1, 1]
        assert got.heads["slice"].tolist() == [0, 1, 2] * 2
        assert got.heads["image_index"].tolist() == [1, 2, 3, 4, 5, 6]
        sent = heads_of(scan)
        for head in got.heads:
            same = sent["idx"]["slice"] == head["slice"]
            same &= sent["idx"]["repetition"] == head["repetition"]
            for name in ("position", "read_dir", "phase_dir", "slice_dir"):
                np.testing.assert_allclose(head[name], sent[same][0][name], atol=1e-3)
            np.testing.assert_allclose(head["field_of_view"], (80, 84, 4), rtol=1e-5)

    def test_what_goes_along(self, server: MrdServer, scan: Path, tmp_path: Path) -> None:
        got = stream(scan, server, tmp_path)
        for meta in got.meta:
            assert meta["DataRole"] == "Image"
            assert meta["ImageProcessingHistory"] == ["core-mri", "wavelet"]
            assert meta["Keep_image_geometry"] == "1"
            assert "not for diagnostic use" in meta["ImageComments"]
            assert meta["ContentQualification"] == "RESEARCH"
            assert float(meta["WindowWidth"]) > 0

    def test_whole_numbers_for_scanners(
        self, server: MrdServer, scan: Path, tmp_path: Path
    ) -> None:
        text = json.dumps({"parameters": {"config": "zero-filled", "datatype": "uint16"}})
        got = stream(scan, server, tmp_path, "--config", "openrecon", "--text", text)
        assert got.pixels.dtype == np.uint16
        exact = from_file("zero-filled", scan, tmp_path)
        assert got.pixels[:3].max() == 4095
        scale = float(got.meta[0]["CoreMRIScale"])
        np.testing.assert_allclose(
            got.pixels[:3].transpose(0, 2, 1) * scale, exact, atol=0.51 * scale
        )

    def test_nothing_is_kept(self, server: MrdServer, scan: Path, tmp_path: Path) -> None:
        before = files_below(server.data)
        stream(scan, server, tmp_path, "--config", "zero-filled")
        assert files_below(server.data) == before
        deadline = time.monotonic() + 5
        while streams_open(server) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not streams_open(server)
        assert '"acquisitions"' in server.log.read_text()
        metrics = Client(server.url).ask("GET", "/metrics").body.decode()
        assert 'core_mri_mrd_streams_total{code=""}' in metrics

    def test_standard_input_and_output(self, scan: Path, tmp_path: Path) -> None:
        sent = run_client(scan, "-", "unused", "--config", "zero-filled").stdout
        command = subprocess.run(
            [sys.executable, "-m", "core_mri", "mrd", "wavelet", "zero-filled"],
            input=sent, capture_output=True, timeout=120, check=True,
            env=OURS,
        )  # fmt: skip
        (tmp_path / "answer.bin").write_bytes(command.stdout)
        run_client(tmp_path / "answer.bin", "decode", tmp_path / "answer.npz")
        got = Answer(tmp_path / "answer.npz")
        np.testing.assert_array_equal(
            got.pixels[3:].transpose(0, 2, 1), from_file("zero-filled", scan, tmp_path, 1)
        )

    @pytest.mark.slow
    def test_a_cut_stream_on_standard_input(self, scan: Path) -> None:
        sent = run_client(scan, "-", "unused").stdout
        cut = subprocess.run(
            [sys.executable, "-m", "core_mri", "mrd", "zero-filled"],
            input=sent[:-5000], capture_output=True, timeout=120, check=False, env=OURS,
        )  # fmt: skip
        assert cut.returncode == 1
        assert b"SERVE-31" in cut.stderr
        assert b"SERVE-31" in cut.stdout
        assert cut.stdout.endswith(CLOSE)

    @pytest.mark.skipif(
        shutil.which("ismrmrd_recon_cartesian_2d") is None,
        reason="Debian's ismrmrd-tools are not installed (apt-get install ismrmrd-tools)",
    )
    def test_beside_the_tools_of_debian(self, server: MrdServer, tmp_path: Path) -> None:
        """A phantom of theirs, streamed; their own reconstruction of the same file beside ours."""
        make = ["ismrmrd_generate_cartesian_shepp_logan", "-m", "64", "-c", "4", "-o", "debian.h5"]
        subprocess.run(make, cwd=tmp_path, check=True, capture_output=True)
        got = stream(tmp_path / "debian.h5", server, tmp_path, "--config", "zero-filled")
        subprocess.run(
            ["ismrmrd_recon_cartesian_2d", "debian.h5"], cwd=tmp_path, check=True,
            capture_output=True,
        )  # fmt: skip
        with h5py.File(tmp_path / "debian.h5") as file:
            found: list[Any] = []
            file.visititems(
                lambda name, item: found.append(item[()]) if name.endswith("/data")
                and isinstance(item, h5py.Dataset) and item.dtype.kind in "fc" else None
            )  # fmt: skip
        theirs = np.abs(np.squeeze(found[0]))
        ours = got.pixels[0]
        assert ours.shape == theirs.shape
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999


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


@pytest.fixture
def header(scan: Path) -> bytes:
    return text(3, header_of(scan))


def alive(server: MrdServer, scan: Path, tmp_path: Path) -> None:
    """The next client is answered as if nothing had been."""
    assert Client(server.url).ask("GET", "/ready").status == 200
    assert len(stream(scan, server, tmp_path, "--config", "zero-filled").pixels) == 6


class TestRefusals:
    @pytest.mark.parametrize(
        ("parts", "code", "said"),
        [
            (["acquisition"], "SERVE-30", "before the header"),
            (["waveform"], "SERVE-30", "before the header"),
            (["header", "config"], "SERVE-30", "after the header"),
            (["header", "header"], "SERVE-30", "after the header"),
            (["header", "image"], "SERVE-30", "an image"),
            (["number"], "SERVE-30", "known are"),
            (["header"], "SERVE-31", "without a close message"),
            (["unknown"], "SERVE-32", "wavelet"),
            (["binary"], "SERVE-32", "no text"),
            (["json"], "SERVE-32", "parameters"),
            (["datatype"], "SERVE-32", "float32"),
            (["header", "close"], "DATA-10", "no readouts"),
            (["no xml"], "DATA-02", "no XML"),
            (["entities"], "DATA-13", "entities"),
            (["no matrix"], "DATA-14", "matrix"),
            (["header", "long readout"], "DATA-14", "matrix of 64 x 56"),
            (["header", "far line"], "DATA-14", "line 200"),
            (["header", "acquisition", "other coils"], "DATA-14", "4 coils, after some of 6"),
            (["header", "nan", "close"], "DATA-04", "not finite"),
            (["huge header", "acquisition"], "DATA-14", "60000 x 60000 x 1, more than any"),
            (["header", "10 GB"], "SERVE-04", "claims 10"),
            (["4 GB header"], "SERVE-04", "claims 4294967295"),
            (["4 GB config"], "SERVE-04", "claims 4294967295"),
            (["header", "flood"], "SERVE-04", "are allowed"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, list) else "",
    )
    def test_each_says_what_is_wrong(
        self, parts: list[str], code: str, said: str, server: MrdServer, header: bytes
    ) -> None:
        large = bytearray(acquisition(np.ones((1, 1))))
        struct.pack_into("<H", large, 2 + 34, 65535)  # number_of_samples
        struct.pack_into("<H", large, 2 + 38, 20000)  # active_channels
        known = {
            "config": config("wavelet"),
            "unknown": config("invertcontrast"),
            "binary": config("")[:2] + b"\xff" * 1024,
            "json": text(2, b'{"a": 1}'),
            "datatype": text(2, b'{"parameters": {"datatype": "int8"}}'),
            "header": header,
            "huge header": text(
                3,
                header[6:]
                .replace(b"<y>56</y>", b"<y>60000</y>")
                .replace(b"<x>64</x>", b"<x>60000</x>"),
            ),
            "no xml": text(3, b"<ismrmrd"),
            "entities": text(3, b'<!DOCTYPE a [<!ENTITY b "c">]><a/>'),
            "no matrix": text(3, b"<ismrmrdHeader/>"),
            "acquisition": acquisition(LINE),
            "long readout": acquisition(np.ones((6, 128))),
            "far line": acquisition(LINE, kspace_encode_step_1=200),
            "other coils": acquisition(np.ones((4, 64))),
            "nan": acquisition(np.full((6, 64), np.nan), kspace_encode_step_1=28),
            "waveform": struct.pack("<H", 1026)
            + ismrmrd.Waveform.from_array(np.ones((1, 3), np.uint32)).to_bytes(),
            "image": struct.pack("<H", 1022)
            + ismrmrd.Image.from_array(np.ones((4, 4), np.float32)).to_bytes(),
            "number": struct.pack("<H", 4242),
            "10 GB": bytes(large),
            "4 GB header": text(3, b"<a>", 0xFFFFFFFF),
            "4 GB config": text(2, b"<a>", 0xFFFFFFFF),
            "flood": acquisition(np.ones((64, 64))) * 2000,
            "close": CLOSE,
        }
        content = b"".join(known[part] for part in parts)
        told = answer_to(server, content)
        assert told.startswith(f"ERROR   {code}: "), told
        assert said in told
        assert "/tmp" not in told
        assert "/dev/shm" not in told

    @pytest.mark.parametrize("cut", [1, 20, 300, 700, 3000])
    def test_half_a_message(self, cut: int, server: MrdServer, header: bytes) -> None:
        content = config("wavelet") + header + acquisition(LINE)
        told = answer_to(server, content[:-cut])
        assert told.startswith("ERROR   SERVE-31: "), told
        assert "close message" in told

    def test_a_client_that_only_looks(self, server: MrdServer) -> None:
        assert answer_to(server, b"") == ""
        assert answer_to(server, CLOSE) == ""

    def test_a_client_that_stops_sending(
        self, server: MrdServer, header: bytes, scan: Path, tmp_path: Path
    ) -> None:
        start = time.monotonic()
        told = answer_to(server, header + acquisition(LINE), close=False)
        assert told.startswith(f"ERROR   SERVE-04: nothing was sent or taken within {IDLE_S} s")
        assert IDLE_S - 0.5 < time.monotonic() - start < IDLE_S + 10
        alive(server, scan, tmp_path)

    def test_no_more_clients_than_allowed(
        self, server: MrdServer, header: bytes, scan: Path, tmp_path: Path
    ) -> None:
        host, _, port = server.address.rpartition(":")
        waiting = [socket.create_connection((host, int(port))) for _ in range(3)]
        for connection in waiting:
            connection.sendall(header)
        time.sleep(0.5)
        told = answer_to(server, header)
        assert told.startswith("ERROR   SERVE-04: 3 streams are open")
        for connection in waiting:
            connection.close()
        wait_for_room(server)
        alive(server, scan, tmp_path)

    def test_several_clients_at_once(self, server: MrdServer, scan: Path, tmp_path: Path) -> None:
        names = ("wavelet", "zero-filled", "zero-filled")
        outs = [tmp_path / f"{number}.npz" for number in range(3)]
        clients = [
            subprocess.Popen(
                [sys.executable, CLIENT, scan, server.address, out, "--config", name],
                env=foreign(),
            )
            for name, out in zip(names, outs, strict=True)
        ]
        assert [client.wait(120) for client in clients] == [0, 0, 0]
        first, second, third = (Answer(out).pixels for out in outs)
        np.testing.assert_array_equal(second, third)
        assert np.abs(first - second).max() > 0

    def test_a_process_that_dies(
        self, server: MrdServer, header: bytes, scan: Path, tmp_path: Path
    ) -> None:
        before = set(processes_below(server.process.pid, 2))
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(header)
            deadline = time.monotonic() + 20
            while not (new := set(processes_below(server.process.pid, 2)) - before):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            for process in new:
                os.kill(process, signal.SIGKILL)
            told = b""
            while part := connection.recv(1 << 16):
                told += part
        assert b"ERROR   SERVE-06: " in told
        alive(server, scan, tmp_path)


def wait_for_room(server: MrdServer) -> None:
    deadline = time.monotonic() + 20
    while streams_open(server) and time.monotonic() < deadline:
        time.sleep(0.1)


class TestReader:
    def messages(self, content: bytes, piece: int, limit: int = 1 << 20) -> list[Message]:
        source = io.BytesIO(content)
        reader = MessageReader(lambda most: source.read(min(most, piece)), limit)
        return list(iter(reader.next, None))

    def test_pieces_of_any_size_give_the_same_messages(self, header: bytes) -> None:
        content = config("wavelet") + header + acquisition(LINE, scan_counter=7) + CLOSE
        for piece in (1, 3, 1000, 1 << 20):
            found = self.messages(content, piece)
            assert [message.kind for message in found] == [1, 3, 1008, 4]
            one = found[2].acquisition
            assert one is not None
            assert one.head["scan_counter"] == 7
            np.testing.assert_array_equal(one.samples.view(np.complex64), 1)

    def test_noise_is_refused_in_our_words(self, header: bytes) -> None:
        good = config("wavelet") + header + acquisition(LINE) * 3 + CLOSE
        rng = np.random.default_rng(0)
        refused = 0
        for _ in range(300):
            content = bytearray(good)
            for place in rng.integers(0, len(content), rng.integers(1, 6)):
                content[place] = rng.integers(256)
            cut = bytes(content[: rng.integers(1, len(content))])
            try:
                self.messages(cut, 1000)
            except ServingError as error:
                assert error.code in ("SERVE-04", "SERVE-30", "SERVE-31")  # noqa: PT017
                refused += 1
        assert refused > 200

    def test_the_limit_is_that_of_the_whole_stream(self) -> None:
        line = acquisition(LINE)
        assert len(self.messages(line * 3, 1000, 3 * len(line))) == 3
        with pytest.raises(ServingError, match=r"SERVE-04.*are allowed"):
            self.messages(line * 3, 1000, 3 * len(line) - 1)


def test_a_client_that_takes_no_images(scan: Path, tmp_path: Path) -> None:
    """In this process: the limit is one of pauses, whichever way bytes go."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = run_client(scan, "-", "unused", "--config", "zero-filled").stdout
    sender = threading.Thread(target=theirs.sendall, args=(sent,))
    work = MrdWork(ours, 0.5, 1 << 30, tmp_path, (solver("zero-filled"),), "cpu")
    said: list[dict[str, Any]] = []
    with ours, theirs:
        sender.start()
        with pytest.raises(ServingError, match=r"SERVE-04.*within 0.5 s"):
            do_mrd(work, said.append, dict)
        sender.join()
    assert said[-1] == {"sending": True}  # so that no words are put among pixels


@pytest.mark.slow
def test_weights_give_the_images_of_the_command(scan: Path, released: Path, tmp_path: Path) -> None:
    sent = run_client(scan, "-", "unused", "--config", "network").stdout
    weights = str(released / "network")
    done = subprocess.run(
        [sys.executable, "-m", "core_mri", "mrd", weights, "--device", "cpu"],
        input=sent, capture_output=True, timeout=200, check=True, env=OURS,
    )  # fmt: skip
    (tmp_path / "answer.bin").write_bytes(done.stdout)
    run_client(tmp_path / "answer.bin", "decode", tmp_path / "answer.npz")
    got = Answer(tmp_path / "answer.npz")
    target = tmp_path / "o.h5"
    assert main(["reconstruct", weights, str(scan), "--out", str(target), "--device", "cpu"]) == 0
    with h5py.File(target) as file:
        expected = file["reconstruction"][()]
    np.testing.assert_allclose(
        got.pixels[:3].transpose(0, 2, 1), expected, rtol=1e-4, atol=1e-6 * expected.max()
    )


class TestWhoMayCome:
    def test_this_machine_and_those_named(self) -> None:
        closed = Neighbors(mrd=True)
        assert is_allowed(closed, "127.0.0.1")
        assert is_allowed(closed, "::1")
        assert is_allowed(closed, "::ffff:127.0.0.1")
        assert not is_allowed(closed, "10.1.2.3")
        opened = Neighbors(mrd=True, allow=("10.1.0.0/16",))
        assert is_allowed(opened, "10.1.2.3")
        assert is_allowed(opened, "::ffff:10.1.2.3")
        assert not is_allowed(opened, "10.2.2.3")

    def test_other_hosts_need_names(self, tmp_path: Path) -> None:
        words = {"sources": ("wavelet",), "host": "0.0.0.0", "token_file": tmp_path / "tokens"}
        with pytest.raises(ConfigError, match=r"SERVE-01.*--allow"):
            ServeConfig(**words, neighbors=Neighbors(mrd=True))
        ServeConfig(**words, neighbors=Neighbors(mrd=True, allow=("10.1.0.0/16",)))

    @pytest.mark.parametrize(
        "wrong", [{"allow": ("nowhere",)}, {"mrd_port": 70000}, {"mrd_clients": 0}]
    )
    def test_settings_that_cannot_be(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="CONFIG-01"):
            Neighbors(**wrong)

    def test_a_port_that_is_taken(self, server: MrdServer, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "core_mri", "serve", "wavelet", "--port", "0", "--mrd",
             "--mrd-port", server.address.rpartition(":")[2], "--data-dir", str(tmp_path / "d")],
            capture_output=True, timeout=60, check=False, env=OURS,
        )  # fmt: skip
        assert done.returncode == 1
        assert b"SERVE-02" in done.stderr

    def test_only_what_reconstructs_takes_streams(self) -> None:
        wavelet, organs = solver("wavelet"), Served("organs", "organs", "segment")
        assert reconstructing((organs, wavelet)) == (wavelet,)
        with pytest.raises(ConfigError, match=r"CONFIG-05.*organs"):
            reconstructing((organs,))


class TestOpenRecon:
    def test_the_label_on_the_image_is_the_label_of_the_file(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "OpenReconLabel.json"
        assert main(["mrd", "wavelet", "cg-sense", "--label", str(path)]) == 0
        line = capfd.readouterr().out.strip()
        assert line.startswith(f'LABEL "{KEY}"="')
        label = json.loads(base64.b64decode(line.partition('"="')[2].removesuffix('"')))
        assert label == json.loads(path.read_text())
        reconstruction = label["reconstruction"]
        assert reconstruction["transfer_protocol"] == {"protocol": "ISMRMRD", "version": "1.4.1"}
        assert reconstruction["port"] == 9002
        assert reconstruction["content_qualification_type"] == "RESEARCH"
        names = [value["id"] for value in label["parameters"][0]["values"]]
        assert names == ["wavelet", "cg-sense"]
        assert "not for diagnostic use" in label["general"]["information"]["en"]

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("general", "version"), "one"),
            (("general", "name"), "core-mri"),
            (("reconstruction", "port"), "9002"),
            (("reconstruction", "emitter"), "raww"),
            (("reconstruction", "can_use_gpu"), "false"),
            (("reconstruction", "transfer_protocol"), {"protocol": "DICOM", "version": "1"}),
            (("parameters",), []),
            (("surplus",), 1),
        ],
    )
    def test_labels_that_do_not_fit(self, place: tuple[str, ...], value: object) -> None:
        label = make_label(["wavelet"])
        inside: Any = label
        for name in place[:-1]:
            inside = inside[name]
        inside[place[-1]] = value
        with pytest.raises(ConfigError, match=r"CONFIG-05.*Open Recon label"):
            check_label(label)

    def test_a_label_without_a_part(self) -> None:
        label = make_label(["wavelet"])
        del label["reconstruction"]["port"]
        with pytest.raises(ConfigError, match="port"):
            check_label(label)
