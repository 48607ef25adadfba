from __future__ import annotations

import pytest
import torch

import core_mri
from core_mri.config import save_config
from core_mri.errors import DataError
from core_mri.files.nifti import write_nifti
from core_mri.models import create_model
from core_mri.physics.phantoms import phantom_volume
from data_registry import IngestConfig, Source, ingest
from data_registry.catalogue import Registry
from pretrain.advice import advice
from pretrain.cli import main
from pretrain.dry_run import dry_run
from pretrain.train import train
from tests.pretrain.conftest import MemorySlices


@pytest.fixture
def one_volume(tmp_path):
    """A registry of one volume, of a training patient whatever the key."""
    image, _ = phantom_volume("brain", 0, size=48, num_slices=12)
    scan = tmp_path / "scans" / "sub-00" / "brain_T1.nii.gz"
    scan.parent.mkdir(parents=True)
    write_nifti(image, scan)
    Registry.create(tmp_path / "registry", fractions=(1.0, 0.0, 0.0))
    source = Source(name="one", licence="CC0-1.0", root=str(tmp_path / "scans"), synthetic=True)
    ingest(IngestConfig(registry=tmp_path / "registry", sources=(source,), jobs=1))
    return tmp_path / "registry"


class TestDryRun:
    def test_operations_are_at_least_those_of_the_encoder(self, tiny, registry):
        """A linear layer costs 2 operations a weight and token, and thrice that with backward."""
        config = tiny(registry=str(registry))
        found = dry_run(config)
        blocks = sum(p.numel() for p in create_model(config.model).vit.blocks.parameters())
        tokens = 2 * config.batch_size * (1 + 16) + 2 * config.batch_size * (1 + 4)
        teacher = 2 * config.batch_size * (1 + 16)
        assert 0.8 < found.flops / (2 * blocks * (3 * tokens + teacher)) < 1.6

    def test_notes_are_printed(self, tiny, registry, tmp_path, capsys):
        config = tiny(registry=str(registry), layer_scale=1e-5)
        save_config(config, tmp_path / "config.yaml")
        assert main(["run", str(tmp_path / "config.yaml"), "--dry-run"]) == 0
        printed = capsys.readouterr().out
        assert "note              layer_scale 1e-05 in a run of 6 steps" in printed
        assert "GFLOP a step" in printed


class TestBadInput:
    def test_empty_registry(self, tiny, tmp_path):
        Registry.create(tmp_path / "registry")
        for verb in (dry_run, train):
            with pytest.raises(DataError, match="no slice") as caught:
                verb(tiny())
            assert caught.value.code == "DATA-09"
        assert not tiny().out.exists()

    def test_one_volume_trains_and_is_told(self, tiny, one_volume):
        config = tiny(registry=str(one_volume), steps=2)
        found = dry_run(config)
        assert any("1 volume(s) for groups of 4" in note for note in found.advice)
        assert train(config).exists()
        assert "not scored" in (config.out / "report.html").read_text()


class TestAdvice:
    SLICES = MemorySlices()

    def told(self, config, validation=None):
        return " ".join(advice(config, self.SLICES, validation))

    def test_nothing_to_say(self, tiny):
        assert advice(tiny(steps=30), self.SLICES, None) == []

    def test_trained_weights(self, tiny, tmp_path):
        torch.manual_seed(0)
        encoder = create_model("vit_micro_patch8", image_size=32)
        start = str(core_mri.save_model(encoder, tmp_path / "start"))
        told = self.told(tiny(start=start))
        assert "try 1.8e-05" in told
        assert "start_freeze_steps is 0" in told
        assert "8 validation patients (here 0)" in told
        calm = tiny(start=start, start_freeze_steps=2, optimizer={"learning_rate": 1e-5})
        enough = MemorySlices(subjects=range(10, 14))
        assert not advice(calm, self.SLICES, enough) or "never seen" in self.told(calm, enough)

    def test_small_slices_long_warmup_few_steps(self, tiny):
        config = tiny(
            steps=3, optimizer={"warmup_steps": 3}, views={"global_size": 128, "local_size": 16}
        )
        told = self.told(config)
        assert "24 samples of 48 slices" in told
        assert "most of the run. Try" in told
        assert "a side below 48 px" in told
