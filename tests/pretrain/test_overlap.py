"""A run does not start on test patients, whoever holds them; a reason opens the way and is told."""

from __future__ import annotations

import json

import pytest

from core_mri.errors import ConfigError, DataError
from data_registry import IngestConfig, Registry, Source, ingest
from data_registry.deny_list import deny_list_of, write_deny_list
from pretrain.cli import main
from pretrain.data import open_slices
from pretrain.dry_run import dry_run
from pretrain.overlap import check_overlap
from pretrain.train import train


@pytest.fixture(scope="module")
def tasks(registry, tmp_path_factory):
    """The scans of the registry once more, all of test patients, under another key."""
    path = tmp_path_factory.mktemp("tasks") / "tasks"
    Registry.create(path, fractions=(0.0, 0.0, 1.0))
    source = Source(name="tasks", licence="CC0-1.0", root=str(registry.parent / "scans"))
    ingest(IngestConfig(registry=path, sources=(source,), jobs=1))
    return path


def overlap(config):
    return check_overlap(config, open_slices(config).volumes)


class TestCheck:
    def test_own_test_patients_are_none_of_them(self, tiny, registry):
        told = overlap(tiny(registry=str(registry)))
        assert told.startswith("checked: none of ")

    @pytest.mark.parametrize("as_file", [False, True])
    def test_patients_of_another_registry(self, tiny, registry, tasks, tmp_path, as_file):
        where = tasks
        if as_file:
            where = tmp_path / "deny.parquet"
            write_deny_list(deny_list_of(Registry.open(tasks)), where)
        config = tiny(registry=str(registry), test_sets=[str(where)])
        with pytest.raises(ConfigError, match="by voxels") as caught:
            overlap(config)
        assert caught.value.code == "CONFIG-05"
        assert "--allow-overlap REASON" in caught.value.fix
        assert "subject_id NOT IN ('" in caught.value.fix

    def test_a_wrong_path(self, tiny, registry, tmp_path):
        with pytest.raises(DataError, match="no registry and no deny list"):
            overlap(tiny(registry=str(registry), test_sets=[str(tmp_path / "none")]))


class TestRun:
    def test_nothing_starts_and_nothing_is_written(self, tiny, registry, tasks, tmp_path):
        config = tiny(registry=str(registry), test_sets=[str(tasks)])
        with pytest.raises(ConfigError, match="test patients are among"):
            train(config)
        with pytest.raises(ConfigError, match="test patients are among"):
            dry_run(config)
        assert not (tmp_path / "run").exists()

    def test_the_model_card_tells_the_reason(self, tiny, registry, tasks):
        reason = "only a test of the program"
        config = tiny(registry=str(registry), test_sets=[str(tasks)], allow_overlap=reason)
        weights = train(config)
        card = (weights / "README.md").read_text()
        assert "OVERLAP: " in card
        assert f"allowed: {reason}" in card
        assert (
            "OVERLAP: "
            in json.loads((weights / "config.json").read_text())["card"]["data"]["test patients"]
        )
        assert "OVERLAP: " in (weights.parent / "report.html").read_text()

    def test_flag(self, capsys):
        with pytest.raises(SystemExit) as caught:
            main(["run", "tiny_cpu", "--help"])
        assert caught.value.code == 0
        assert "--allow-overlap" in capsys.readouterr().out
