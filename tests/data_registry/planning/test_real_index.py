"""The index of the Imaging Data Commons that the package `idc-index-data` holds."""

from __future__ import annotations

import importlib.util

import pytest

from data_registry.planning.corpus import Plan, PlanConfig, check_met, plan_corpus
from data_registry.planning.tallies import leaks, totals

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
