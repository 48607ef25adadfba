"""Flipped bits, missing and cut shards: what is lost goes, no more, and ingest brings it back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from core_mri.__main__ import main
from core_mri.errors import DataError
from data_registry import Registry, SliceDataset
from data_registry.catalogue import reason_of
from data_registry.repair import LOST, RepairReport, repair
from tests.data_registry.kill_ingest import fingerprint, write_raw

ALL = ("train", "val", "test")


@pytest.fixture
def copy(registry: Registry, tmp_path: Path) -> Registry:
    return Registry.open(shutil.copytree(registry.path, tmp_path / "copy"))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def place_of(registry: Registry, volume_id: str) -> tuple[Path, int, int]:
    """Shard, first byte and length of the second slice of a volume."""
    query = 'SELECT byte_start, num_bytes FROM slices WHERE volume_id = ? AND "index" = 1'
    (place,) = registry.sql(query, [volume_id]).to_pylist()
    shard = registry.path / "shards" / registry.volume(volume_id).shard
    return shard, place["byte_start"], place["num_bytes"]


class TestIntact:
    def test_nothing_is_found_or_written(self, copy: Registry) -> None:
        before = fingerprint(copy.path)
        shards = len(list((copy.path / "shards").iterdir()))
        assert repair(copy) == RepairReport(shards=shards, intact=shards)
        assert fingerprint(copy.path) == before

    def test_hashes_are_those_of_sha256sum(self, copy: Registry) -> None:
        import hashlib

        rows = copy.sql("SELECT shard, size, sha256 FROM shards").to_pylist()
        assert {row["shard"] for row in rows} == {v.shard for v in copy.volumes()}
        for row in rows:
            content = (copy.path / "shards" / row["shard"]).read_bytes()
            assert len(content) == row["size"]
            assert hashlib.sha256(content).hexdigest() == row["sha256"]


class TestDamage:
    @pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.999])
    def test_a_flipped_bit_costs_its_volume_and_no_other(
        self, copy: Registry, scans: Path, run_ingest, part: float
    ) -> None:
        before = fingerprint(copy.path)
        victim = copy.volumes("role = 'image'")[2]
        shard, start, length = place_of(copy, victim.volume_id)
        flip(shard, start + int(part * length))
        slices = SliceDataset(copy, split=ALL, min_foreground=0)
        with pytest.raises(DataError, match="damaged") as caught:
            [slices.read(i) for i in range(len(slices))]
        assert caught.value.code == "DATA-08"
        found = repair(copy, dry_run=True)
        assert found.lost == {victim.volume_id: shard.name}
        assert found.damaged == {shard.name: "altered"}
        assert len(copy.volumes()) == 14
        done = repair(copy)
        assert done.lost == found.lost
        assert done.files_to_read == 1 if victim.region != "prostate" else 4
        assert len(copy.volumes()) == 13
        assert copy.stats()["quarantined"] == {reason_of(LOST): 1}
        report = run_ingest(copy.path, scans)
        assert report.volumes_added == 1
        after = fingerprint(copy.path)
        assert {k: v for k, v in after.items() if k != "loose files"} == {
            k: v for k, v in before.items() if k != "loose files"
        }
        assert repair(copy).lost == {}

    def test_missing_and_cut_shards(self, copy: Registry, scans: Path, run_ingest) -> None:
        before = fingerprint(copy.path)
        shards = sorted((copy.path / "shards").iterdir())
        inside = {
            s.name: {v.volume_id for v in copy.volumes("shard = ?", [s.name])} for s in shards
        }
        missing, cut = sorted(shards, key=lambda s: len(inside[s.name]))[-2:]
        missing.unlink()
        cut.write_bytes(cut.read_bytes()[:900])
        report = repair(copy)
        assert report.damaged == {missing.name: "missing", cut.name: "altered"}
        assert set(report.lost) == inside[missing.name] | inside[cut.name]
        assert run_ingest(copy.path, scans).volumes_added == len(report.lost)
        for part in ("volumes", "slices", "splits", "voxels", "files"):
            assert fingerprint(copy.path)[part] == before[part]

    def test_damage_outside_of_the_voxels_loses_no_image(self, copy: Registry) -> None:
        """The last byte of the file is of no slice; all voxels still have their hash."""
        shard = copy.path / "shards" / copy.volumes()[0].shard
        with shard.open("ab") as file:
            file.write(b"\0")
        report = repair(copy)
        assert report.damaged == {shard.name: "altered"}
        assert report.lost == {}
        assert report.kept == len(copy.volumes("shard = ?", [shard.name]))

    def test_every_bit_of_the_structure_is_noticed(self, copy: Registry) -> None:
        """No flipped byte between the slices passes for an intact shard."""
        shard = copy.path / "shards" / copy.volumes()[0].shard
        whole = shard.read_bytes()
        for position in np.random.default_rng(0).integers(0, len(whole), 8).tolist():
            shard.write_bytes(whole)
            flip(shard, position)
            assert repair(copy, dry_run=True).damaged == {shard.name: "altered"}

    def test_raw_data_is_lost_with_its_shard(self, tmp_path: Path, run_ingest) -> None:
        write_raw(tmp_path / "in" / "patient20" / "raw.h5")
        run_ingest(tmp_path / "reg", tmp_path / "in")
        registry = Registry.open(tmp_path / "reg")
        (row,) = registry.volumes()
        flip(registry.path / "shards" / row.shard, 60)
        assert list(repair(registry).lost) == [row.volume_id]
        assert run_ingest(tmp_path / "reg", tmp_path / "in").volumes_added == 1
        assert registry.read_kspace(registry.volumes()[0]).read_slice(0).shape == (3, 48, 40)


class TestCommand:
    def test_tells_and_repairs(self, copy: Registry, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["data", "repair", "--registry", str(copy.path)]
        assert main([*words, "--dry-run"]) == 0
        row = copy.volumes()[0]
        (copy.path / "shards" / row.shard).unlink()
        assert main([*words, "--dry-run"]) == 1
        assert f"lost {row.volume_id}" in capsys.readouterr().out
        assert main([*words, "--json"]) == 0
        assert row.volume_id in json.loads(capsys.readouterr().out)["lost"]
        assert main([*words, "--dry-run"]) == 0

    def test_while_another_writes(self, copy: Registry) -> None:
        from data_registry.commits import sole_writer

        with sole_writer(copy):
            assert main(["data", "repair", "--registry", str(copy.path)]) == 1
            assert main(["data", "repair", "--registry", str(copy.path), "--dry-run"]) == 0
