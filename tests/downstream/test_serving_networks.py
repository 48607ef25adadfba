"""Weights as sources: a reconstruction network, classes, boxes and clicks; all untrained."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest

import core_mri
from core_mri.__main__ import main
from core_mri.physics.phantoms import phantom_volume
from core_mri.volume import orientation_of
from tests.downstream.dicom_service import fetch, get, parts_of
from tests.downstream.serving_client import Client, ServerProcess

pytestmark = pytest.mark.slow
NAME = "Ywklmpqr"


@pytest.fixture
def many(networks: ServerProcess) -> Client:
    return Client(networks.url)


def test_names_show_no_path(many: Client, released: Path) -> None:
    about = many.ask("GET", "/v1/service")
    assert [(s["name"], s["role"]) for s in about.json()["sources"]] == [
        ("wavelet", "reconstruct"), ("random", "prompt"), ("network", "reconstruct"),
        ("organs", "segment"), ("run", "reconstruct"),
    ]  # fmt: skip
    assert str(released).encode() not in about.body


def test_a_network_reconstructs_as_the_command(
    many: Client, released: Path, raw: bytes, tmp_path: Path
) -> None:
    found = many.run(raw, source="network")
    assert found["report"]["source"] == "network", found["error"]
    assert len(found["report"]["weights_sha256"]) == 64
    assert found["report"]["likeness"] is None  # it has no encoder that could tell
    (tmp_path / "raw.h5").write_bytes(raw)
    words = [str(released / "network"), str(tmp_path / "raw.h5"), "--out", str(tmp_path / "o.h5")]
    assert main(["reconstruct", *words, "--device", "cpu"]) == 0
    with h5py.File(io.BytesIO(many.result(found["id"], "reconstruction.h5"))) as ours:
        images = ours["reconstruction"][()]
    with h5py.File(tmp_path / "o.h5") as command:
        np.testing.assert_allclose(images, command["reconstruction"][()], rtol=1e-4, atol=1e-6)


def test_classes_are_named(many: Client, released: Path, tmp_path: Path) -> None:
    scan = phantom_volume("abdomen", 1, size=48, num_slices=4)[0]
    core_mri.write_volume(scan, tmp_path / "scan.nii.gz")
    found = many.run((tmp_path / "scan.nii.gz").read_bytes(), source="organs")
    assert {s["name"] for s in found["report"]["structures"]} == {"liver", "spleen"}
    (tmp_path / "mask.nii.gz").write_bytes(many.result(found["id"], "mask.nii.gz"))
    out = tmp_path / "command.nii.gz"
    words = [str(released / "organs"), str(tmp_path / "scan.nii.gz"), "--out", str(out)]
    assert main(["segment", *words, "--device", "cpu"]) == 0
    ours, command = (core_mri.read_volume(p) for p in (tmp_path / "mask.nii.gz", out))
    assert ours.same_grid(command)
    np.testing.assert_array_equal(ours.array, command.array)


class TestLikeness:
    """The report says when a scan is unlike what the weights saw, and when it is not."""

    MASK: ClassVar[dict[str, Any]] = {
        "kind": "equispaced", "acceleration": 2.0, "center_fraction": 0.3, "seed": 0,
    }  # fmt: skip

    def test_of_raw_data(self, many: Client, like_scans: list[Path], unlike_scan: Path) -> None:
        for path, unlike in ((like_scans[0], False), (unlike_scan, True)):
            found = many.run(path.read_bytes(), source="run", mask=self.MASK)
            likeness = found["report"]["likeness"]
            assert likeness["unlike"] is unlike, found["error"]
            assert (likeness["score"] > likeness["threshold"]) is unlike
            assert ("do not rely on the result" in likeness["sentence"]) is unlike
            report = json.loads(many.result(found["id"], "report.json"))
            assert report["likeness"] == likeness

    def test_of_scans(self, many: Client, tmp_path: Path) -> None:
        scan = phantom_volume("abdomen", 40, size=32, num_slices=6)[0]
        noise = np.random.default_rng(0).random(scan.shape).astype(np.float32)
        for volume, unlike in ((scan, False), (scan.with_array(noise), True)):
            core_mri.write_volume(volume, tmp_path / "scan.nii.gz")
            found = many.run((tmp_path / "scan.nii.gz").read_bytes(), source="organs")
            assert found["report"]["likeness"]["unlike"] is unlike, found


class TestPrompts:
    """The weights are random: what they find means nothing, the way there and back is tested."""

    @pytest.fixture(scope="class")
    @classmethod
    def scan(cls) -> core_mri.Volume:
        return phantom_volume("abdomen", 1, size=48, num_slices=5)[0]

    def test_a_nifti_scan(self, scan: core_mri.Volume, many: Client, tmp_path: Path) -> None:
        core_mri.write_volume(scan, tmp_path / f"{NAME}.nii.gz")
        found = many.run((tmp_path / f"{NAME}.nii.gz").read_bytes(), source="random")
        assert found["report"]["kind"] == "prompts", found["error"]
        job, shape = found["id"], scan.shape
        box = [5, 5, 2, shape[0] - 5, shape[1] - 5, 3]
        answer = many.ask("POST", f"/v1/jobs/{job}/prompts", {"boxes": [box]}).json()
        (structure,) = answer["report"]["structures"]
        (tmp_path / "mask.nii.gz").write_bytes(many.result(job, "mask.nii.gz"))
        mask = core_mri.read_volume(tmp_path / "mask.nii.gz", kind="label")
        assert mask.same_grid(scan)
        assert structure["voxels"] == int((mask.array == 1).sum()) > 0
        corners = [scan.affine @ [*c, 1] for c in (box[:3], [n - 1 for n in box[3:]])]
        world = [float(v) for corner in corners for v in corner[:3]]
        same = many.ask("POST", f"/v1/jobs/{job}/prompts", {"boxes": [world], "world": True})
        assert same.json()["report"]["structures"] == [structure]
        for wrong in ({}, {"points": [[0, 0, 99, 1]]}, {"points": [[0.5, 0, 0, 1]]},
                      {"points": [[0, 0, 0, 2]]}, {"boxes": [[1, 2, 3]]}):  # fmt: skip
            refused = many.ask("POST", f"/v1/jobs/{job}/prompts", wrong)
            assert refused.status == 422
            assert refused.code in ("CONFIG-05", "SERVE-09")

    def test_a_zipped_series(self, scan: core_mri.Volume, many: Client, tmp_path: Path) -> None:
        facts = {"PatientID": NAME, "SeriesDescription": "T2 AXIAL"}
        core_mri.write_volume(
            core_mri.Volume(scan.array, scan.affine, facts=facts), tmp_path / "series"
        )
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for path in sorted((tmp_path / "series").iterdir()):
                archive.write(path, f"{NAME}/{path.name}")
        found = many.run((tmp_path / "a.zip").read_bytes(), source="random")
        assert found["state"] == "done", found["error"]
        box = [5, 5, 1, 30, 30, 4]
        answer = many.ask("POST", f"/v1/jobs/{found['id']}/prompts", {"boxes": [box]})
        assert {"mask.dcm", "mask.nii.gz"} <= {r["name"] for r in answer.json()["results"]}
        content = many.result(found["id"], "mask.dcm")
        shown = get(many, "/instances?Modality=SEG").json()
        assert content in [parts_of(fetch(many, m["00081190"]["Value"][0]))[0] for m in shown]
        (tmp_path / "mask.dcm").write_bytes(content)
        (tmp_path / "mask.nii.gz").write_bytes(many.result(found["id"], "mask.nii.gz"))
        seg = core_mri.read_volume(tmp_path / "mask.dcm")
        mask = core_mri.read_volume(tmp_path / "mask.nii.gz", kind="label")
        mask = mask.reorient(orientation_of(seg.affine))
        np.testing.assert_array_equal(seg.array, mask.array[1:4])  # no frames without a segment
        with zipfile.ZipFile(io.BytesIO(many.result(found["id"], "images.zip"))) as archive:
            images = b"".join(map(archive.read, archive.namelist()))
        assert NAME.encode() not in images + content

    def test_only_scans_that_are_done(self, many: Client) -> None:
        job = many.create(10)["id"]
        answer = many.ask("POST", f"/v1/jobs/{job}/prompts", {"points": [[1, 1, 1, 1]]})
        assert (answer.status, answer.code) == (409, "SERVE-07")
