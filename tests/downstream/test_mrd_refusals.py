"""What strangers send over MRD: each is refused, in plain words, and the service goes on."""

from __future__ import annotations

import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ismrmrd  # noqa: TID253
import numpy as np
import pytest

from core_mri.errors import ServingError
from downstream.serving.mrd.connection import do_mrd
from downstream.serving.mrd.protocol import Message, MessageReader
from downstream.serving.orders import MrdWork
from downstream.serving.sources import solver
from tests.downstream.mrd_service import (
    CLIENT,
    CLOSE,
    IDLE_S,
    LINE,
    Answer,
    MrdServer,
    acquisition,
    alive,
    answer_to,
    config,
    foreign,
    header_of,
    run_client,
    text,
    wait_for_room,
)
from tests.downstream.serving_client import processes_below


@pytest.fixture
def header(mrd_scan: Path) -> bytes:
    return text(3, header_of(mrd_scan))


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
        self, parts: list[str], code: str, said: str, mrd_server: MrdServer, header: bytes
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
        told = answer_to(mrd_server, content)
        assert told.startswith(f"ERROR   {code}: "), told
        assert said in told
        assert "/tmp" not in told
        assert "/dev/shm" not in told

    @pytest.mark.parametrize("cut", [1, 20, 300, 700, 3000])
    def test_half_a_message(self, cut: int, mrd_server: MrdServer, header: bytes) -> None:
        content = config("wavelet") + header + acquisition(LINE)
        told = answer_to(mrd_server, content[:-cut])
        assert told.startswith("ERROR   SERVE-31: "), told
        assert "close message" in told

    def test_a_client_that_only_looks(self, mrd_server: MrdServer) -> None:
        assert answer_to(mrd_server, b"") == ""
        assert answer_to(mrd_server, CLOSE) == ""

    def test_a_client_that_stops_sending(
        self, mrd_server: MrdServer, header: bytes, mrd_scan: Path, tmp_path: Path
    ) -> None:
        start = time.monotonic()
        told = answer_to(mrd_server, header + acquisition(LINE), close=False)
        assert told.startswith(f"ERROR   SERVE-04: nothing was sent or taken within {IDLE_S} s")
        assert IDLE_S - 0.5 < time.monotonic() - start < IDLE_S + 10
        alive(mrd_server, mrd_scan, tmp_path)

    def test_no_more_clients_than_allowed(
        self, mrd_server: MrdServer, header: bytes, mrd_scan: Path, tmp_path: Path
    ) -> None:
        host, _, port = mrd_server.address.rpartition(":")
        waiting = [socket.create_connection((host, int(port))) for _ in range(3)]
        for connection in waiting:
            connection.sendall(header)
        time.sleep(0.5)
        told = answer_to(mrd_server, header)
        assert told.startswith("ERROR   SERVE-04: 3 streams are open")
        for connection in waiting:
            connection.close()
        wait_for_room(mrd_server)
        alive(mrd_server, mrd_scan, tmp_path)

    def test_several_clients_at_once(
        self, mrd_server: MrdServer, mrd_scan: Path, tmp_path: Path
    ) -> None:
        names = ("wavelet", "zero-filled", "zero-filled")
        outs = [tmp_path / f"{number}.npz" for number in range(3)]
        clients = [
            subprocess.Popen(
                [sys.executable, CLIENT, mrd_scan, mrd_server.address, out, "--config", name],
                env=foreign(),
            )
            for name, out in zip(names, outs, strict=True)
        ]
        assert [client.wait(120) for client in clients] == [0, 0, 0]
        first, second, third = (Answer(out).pixels for out in outs)
        np.testing.assert_array_equal(second, third)
        assert np.abs(first - second).max() > 0

    def test_a_process_that_dies(
        self, mrd_server: MrdServer, header: bytes, mrd_scan: Path, tmp_path: Path
    ) -> None:
        before = set(processes_below(mrd_server.process.pid, 2))
        host, _, port = mrd_server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(header)
            deadline = time.monotonic() + 20
            while not (new := set(processes_below(mrd_server.process.pid, 2)) - before):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            for process in new:
                os.kill(process, signal.SIGKILL)
            told = b""
            while part := connection.recv(1 << 16):
                told += part
        assert b"ERROR   SERVE-06: " in told
        alive(mrd_server, mrd_scan, tmp_path)


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


def test_a_client_that_takes_no_images(mrd_scan: Path, tmp_path: Path) -> None:
    """In this process: the limit is one of pauses, whichever way bytes go."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = run_client(mrd_scan, "-", "unused", "--config", "zero-filled").stdout
    sender = threading.Thread(target=theirs.sendall, args=(sent,))
    work = MrdWork(ours, 0.5, 1 << 30, tmp_path, (solver("zero-filled"),), "cpu")
    said: list[dict[str, Any]] = []
    with ours, theirs:
        sender.start()
        with pytest.raises(ServingError, match=r"SERVE-04.*within 0.5 s"):
            do_mrd(work, said.append, dict)
        sender.join()
    assert said[-1] == {"sending": True}  # so that no words are put among pixels
