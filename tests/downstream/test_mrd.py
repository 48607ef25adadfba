"""MRD streams: what clients in processes of their own get back."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from core_mri.__main__ import main
from core_mri.errors import ConfigError
from downstream.serving.mrd.open_recon import KEY, check_label, make_label
from downstream.serving.neighbors import Neighbors, is_allowed
from downstream.serving.settings import ServeConfig
from downstream.serving.sources import Served, reconstructing, solver
from tests.downstream.mrd_service import (
    CLOSE,
    Answer,
    MrdServer,
    files_below,
    from_file,
    heads_of,
    run_client,
    stream,
    streams_open,
)
from tests.downstream.serving_client import OURS, Client


class TestStreams:
    @pytest.mark.data
    def test_the_real_file_gives_the_image_of_the_command(
        self, mrd_server: MrdServer, shared_data: Path, tmp_path: Path
    ) -> None:
        path = shared_data / "kspace" / "phantom_14ch_R3_ismrmrd.h5"
        got = stream(path, mrd_server, tmp_path, "--config", "wavelet", "--waveforms")
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
        self, mrd_server: MrdServer, mrd_scan: Path, tmp_path: Path
    ) -> None:
        got = stream(mrd_scan, mrd_server, tmp_path, "--config", "zero-filled")
        assert got.pixels.shape == (6, 56, 64)
        expected = [from_file("zero-filled", mrd_scan, tmp_path, volume) for volume in (0, 1)]
        np.testing.assert_array_equal(got.pixels.transpose(0, 2, 1), np.concatenate(expected))
        assert got.heads["repetition"].tolist() == [0, 0, 0, 1, 1, 1]
        assert got.heads["slice"].tolist() == [0, 1, 2] * 2
        assert got.heads["image_index"].tolist() == [1, 2, 3, 4, 5, 6]
        sent = heads_of(mrd_scan)
        for head in got.heads:
            same = sent["idx"]["slice"] == head["slice"]
            same &= sent["idx"]["repetition"] == head["repetition"]
            for name in ("position", "read_dir", "phase_dir", "slice_dir"):
                np.testing.assert_allclose(head[name], sent[same][0][name], atol=1e-3)
            np.testing.assert_allclose(head["field_of_view"], (80, 84, 4), rtol=1e-5)

    def test_what_goes_along(self, mrd_server: MrdServer, mrd_scan: Path, tmp_path: Path) -> None:
        got = stream(mrd_scan, mrd_server, tmp_path)
        for meta in got.meta:
            assert meta["DataRole"] == "Image"
            assert meta["ImageProcessingHistory"] == ["core-mri", "wavelet"]
            assert meta["Keep_image_geometry"] == "1"
            assert "not for diagnostic use" in meta["ImageComments"]
            assert meta["ContentQualification"] == "RESEARCH"
            assert float(meta["WindowWidth"]) > 0

    def test_whole_numbers_for_scanners(
        self, mrd_server: MrdServer, mrd_scan: Path, tmp_path: Path
    ) -> None:
        text = json.dumps({"parameters": {"config": "zero-filled", "datatype": "uint16"}})
        got = stream(mrd_scan, mrd_server, tmp_path, "--config", "openrecon", "--text", text)
        assert got.pixels.dtype == np.uint16
        exact = from_file("zero-filled", mrd_scan, tmp_path)
        assert got.pixels[:3].max() == 4095
        scale = float(got.meta[0]["CoreMRIScale"])
        np.testing.assert_allclose(
            got.pixels[:3].transpose(0, 2, 1) * scale, exact, atol=0.51 * scale
        )

    def test_nothing_is_kept(self, mrd_server: MrdServer, mrd_scan: Path, tmp_path: Path) -> None:
        before = files_below(mrd_server.data)
        stream(mrd_scan, mrd_server, tmp_path, "--config", "zero-filled")
        assert files_below(mrd_server.data) == before
        deadline = time.monotonic() + 5
        while streams_open(mrd_server) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not streams_open(mrd_server)
        assert '"acquisitions"' in mrd_server.log.read_text()
        metrics = Client(mrd_server.url).ask("GET", "/metrics").body.decode()
        assert 'core_mri_mrd_streams_total{code=""}' in metrics

    def test_standard_input_and_output(self, mrd_scan: Path, tmp_path: Path) -> None:
        sent = run_client(mrd_scan, "-", "unused", "--config", "zero-filled").stdout
        command = subprocess.run(
            [sys.executable, "-m", "core_mri", "mrd", "wavelet", "zero-filled"],
            input=sent, capture_output=True, timeout=120, check=True,
            env=OURS,
        )  # fmt: skip
        (tmp_path / "answer.bin").write_bytes(command.stdout)
        run_client(tmp_path / "answer.bin", "decode", tmp_path / "answer.npz")
        got = Answer(tmp_path / "answer.npz")
        np.testing.assert_array_equal(
            got.pixels[3:].transpose(0, 2, 1), from_file("zero-filled", mrd_scan, tmp_path, 1)
        )

    @pytest.mark.slow
    def test_a_cut_stream_on_standard_input(self, mrd_scan: Path) -> None:
        sent = run_client(mrd_scan, "-", "unused").stdout
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
    def test_beside_the_tools_of_debian(self, mrd_server: MrdServer, tmp_path: Path) -> None:
        """A phantom of theirs, streamed; their own reconstruction of the same file beside ours."""
        make = ["ismrmrd_generate_cartesian_shepp_logan", "-m", "64", "-c", "4", "-o", "debian.h5"]
        subprocess.run(make, cwd=tmp_path, check=True, capture_output=True)
        got = stream(tmp_path / "debian.h5", mrd_server, tmp_path, "--config", "zero-filled")
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


@pytest.mark.slow
def test_weights_give_the_images_of_the_command(
    mrd_scan: Path, released: Path, tmp_path: Path
) -> None:
    sent = run_client(mrd_scan, "-", "unused", "--config", "network").stdout
    weights = str(released / "network")
    done = subprocess.run(
        [sys.executable, "-m", "core_mri", "mrd", weights, "--device", "cpu"],
        input=sent, capture_output=True, timeout=200, check=True, env=OURS,
    )  # fmt: skip
    (tmp_path / "answer.bin").write_bytes(done.stdout)
    run_client(tmp_path / "answer.bin", "decode", tmp_path / "answer.npz")
    got = Answer(tmp_path / "answer.npz")
    target = tmp_path / "o.h5"
    assert (
        main(["reconstruct", weights, str(mrd_scan), "--out", str(target), "--device", "cpu"]) == 0
    )
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

    def test_a_port_that_is_taken(self, mrd_server: MrdServer, tmp_path: Path) -> None:
        port = mrd_server.address.rpartition(":")[2]
        done = subprocess.run(
            [sys.executable, "-m", "core_mri", "serve", "wavelet", "--port", "0", "--mrd",
             "--mrd-port", port, "--data-dir", str(tmp_path / "d")],
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
