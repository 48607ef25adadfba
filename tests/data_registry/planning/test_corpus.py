"""Promises of a plan: same inputs same plan, never too much, nobody who must not be in it."""

from __future__ import annotations

import csv
import secrets
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core_mri.errors import ConfigError, DataError
from data_registry import Registry
from data_registry.deidentify.identifiers import pseudonym
from data_registry.deny_list import deny_list_of, write_deny_list
from data_registry.fingerprints import fingerprint
from data_registry.planning.corpus import Plan, PlanConfig, check_met, plan_corpus
from data_registry.planning.tallies import Costs, cost_rows, leaks, left_out, totals
from data_registry.splits import split_of


@pytest.fixture
def config(index: Path) -> PlanConfig:
    return PlanConfig(source=str(index), max_slices=3000)


def chosen(plan: Plan, column: str = "series_uid") -> list:
    return plan.chosen.column(column).to_pylist()


class TestChoice:
    def test_same_inputs_same_plan(self, config: PlanConfig) -> None:
        first, second = plan_corpus(config), plan_corpus(config)
        assert first.digest == second.digest
        assert first.chosen.equals(second.chosen)

    def test_order_of_the_index_does_not_matter(self, config, rows, write_index) -> None:
        mixed = [rows[i] for i in np.random.default_rng(3).permutation(len(rows))]
        other = plan_corpus(replace(config, source=str(write_index(mixed, "mixed"))))
        assert other.chosen.equals(plan_corpus(config).chosen)

    def test_another_seed_is_another_choice(self, config: PlanConfig) -> None:
        assert chosen(plan_corpus(config)) != chosen(plan_corpus(replace(config, seed=1)))

    @pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
    def test_never_over_and_monotone(self, config: PlanConfig, balance: float) -> None:
        """Smaller plans are first parts of larger ones; what is missing is less than a series."""
        before: list[str] = []
        for most in (1, 50, 400, 1000, 3000, 6000):
            plan = plan_corpus(replace(config, max_slices=most, balance=balance))
            assert most - 200 < plan.num_slices <= most
            assert chosen(plan)[: len(before)] == before
            before = chosen(plan)
        assert before

    def test_no_limit_takes_all_that_may_be(self, config: PlanConfig) -> None:
        plan = plan_corpus(replace(config, max_slices=0))
        reasons = plan.series.column("left_out").to_pylist()
        assert len(chosen(plan)) == reasons.count("") > 0

    def test_copies_come_last(self, config: PlanConfig) -> None:
        kinds = chosen(plan_corpus(replace(config, max_slices=0)), "kind")
        first = kinds.index("copy")
        assert set(kinds[:first]) == {"acquired"}
        assert set(kinds[first:]) == {"copy"}

    def test_only_images_of_people_that_were_acquired(self, config: PlanConfig) -> None:
        plan = plan_corpus(replace(config, max_slices=0))
        assert "mice" not in chosen(plan, "collection")
        assert set(chosen(plan, "storage_class")) == {"1.2.840.10008.5.1.4.1.1.4"}
        assert not {"T1 SUB", "localizer"} & set(chosen(plan, "description"))
        assert min(chosen(plan, "num_slices")) >= 5
        # Each series of the index is either chosen or counted under one reason.
        assert sum(row["series"] for row in left_out(plan)) + len(chosen(plan)) == len(plan.series)

    def test_region_of_the_collection_where_no_text_tells(self, config: PlanConfig) -> None:
        rows = plan_corpus(config).sql(
            "SELECT DISTINCT collection, region, region_by FROM series WHERE body_part = ''"
        )
        told = {(row["collection"], row["region"], row["region_by"]) for row in rows.to_pylist()}
        assert ("alpha", "liver", "collection") in told
        assert ("beta", "unknown", "none") in told

    def test_regions_hold_what_lies_in_them(self, config: PlanConfig) -> None:
        plan = plan_corpus(replace(config, regions=("spine", "leg"), max_slices=0))
        assert set(chosen(plan, "region")) == {"cervical spine", "knee", "foot"}


class TestLicences:
    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (("commercial-ok",), {"CC-BY-4.0", "CC-BY-3.0"}),
            (
                ("any-known",),
                {"CC-BY-4.0", "CC-BY-3.0", "CC-BY-NC-4.0", "LicenseRef-House-rules-v2"},
            ),
            (("CC-BY-NC-4.0",), {"CC-BY-NC-4.0"}),
            (("cc-by-3.0", "CC-BY-4.0"), {"CC-BY-4.0", "CC-BY-3.0"}),
        ],
    )
    def test_only_what_is_allowed(self, config, wanted, expected) -> None:
        plan = plan_corpus(replace(config, licence=wanted, max_slices=0, tasks=("none",)))
        assert set(chosen(plan, "licence")) == expected

    def test_terms_of_a_house_only_by_name(self, config: PlanConfig) -> None:
        plan = plan_corpus(replace(config, licence=("LicenseRef-House-rules-v2",), max_slices=0))
        assert set(chosen(plan, "collection")) == {"delta"}

    def test_unknown_licence(self, config: PlanConfig) -> None:
        with pytest.raises(ConfigError, match="CONFIG-01") as caught:
            plan_corpus(replace(config, licence=("CC-BY-40",)))
        assert "CC-BY-4.0" in caught.value.fix

    def test_no_licence_is_never_taken(self, config, rows, write_index) -> None:
        bare = [dict(row, license_short_name=None) for row in rows]
        source = str(write_index(bare, "bare"))
        for wanted in ("commercial-ok", "any-known"):
            plan = plan_corpus(replace(config, source=source, licence=(wanted,)))
            assert not chosen(plan)


class TestPatients:
    def test_one_split_each_even_across_collections(self, config: PlanConfig) -> None:
        plan = plan_corpus(replace(config, max_slices=0, tasks=("none",)))
        splits, collections = defaultdict(set), defaultdict(set)
        for row in plan.chosen.to_pylist():
            splits[row["patient_id"]].add(row["split"])
            collections[row["patient_id"]].add(row["collection"])
        assert all(len(found) == 1 for found in splits.values())
        assert any(len(found) > 1 for found in collections.values())
        assert {s for found in splits.values() for s in found} == {"train", "val", "test"}
        assert leaks(plan) == 0

    def test_without_patient_id_each_study_is_a_person(self, config, rows, write_index) -> None:
        nameless = [dict(row, PatientID=" ") for row in rows]
        plan = plan_corpus(
            replace(config, source=str(write_index(nameless, "nameless")), max_slices=0)
        )
        people = {(r["patient_id"], r["study_uid"]) for r in plan.chosen.to_pylist()}
        assert all(patient == f"study:{study}" for patient, study in people)
        assert {r["split"] for r in plan.chosen.to_pylist()} == {"train", "val", "test"}
        assert leaks(plan) == 0

    def test_leaks_are_found(self, config: PlanConfig) -> None:
        """The check can fail: one series of a patient moved to another split."""
        plan = plan_corpus(replace(config, max_slices=0))
        patients, splits = chosen(plan, "patient_id"), plan.series.column("split").to_pylist()
        twice = next(patient for patient in patients if patients.count(patient) > 1)
        moved = (
            plan.series.column("series_uid").to_pylist().index(chosen(plan)[patients.index(twice)])
        )
        splits[moved] = "val" if splits[moved] != "val" else "test"
        place = plan.series.column_names.index("split")
        broken = replace(plan, series=plan.series.set_column(place, "split", [splits]))
        assert leaks(broken) == 1

    def test_splits_are_those_of_a_registry_with_the_key(self, config, tmp_path) -> None:
        key = secrets.token_bytes(32)
        path = tmp_path / "key"
        path.write_text(key.hex())
        path.chmod(0o600)
        plan = plan_corpus(replace(config, key_file=path))
        for row in plan.chosen.to_pylist()[:50]:
            subject = pseudonym(key, "subject", "idc", row["patient_id"])
            assert row["split"] == split_of(key, subject)

    def test_task_patients_are_left_out_with_all_their_series(self, config: PlanConfig) -> None:
        plan = plan_corpus(replace(config, max_slices=0))
        tested = set(
            plan.sql("SELECT patient_id FROM series WHERE collection = 'prostatex'")
            .column("patient_id")
            .to_pylist()
        )
        assert not tested & set(chosen(plan, "patient_id"))
        assert any(name.startswith("shared") for name in tested)  # who is in other collections too
        assert any("patient of prostatex" in row["reason"] for row in left_out(plan))
        everyone = plan_corpus(replace(config, max_slices=0, tasks=("none",)))
        assert "prostatex" in chosen(everyone, "collection")

    def test_deny_list_of_a_user(self, config: PlanConfig, tmp_path: Path) -> None:
        rows = plan_corpus(replace(config, max_slices=0)).chosen.to_pylist()
        path = tmp_path / "mine.csv"
        for named, column in (("PatientID", "patient_id"), ("SeriesInstanceUID", "series_uid")):
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([[named], [rows[0][column]], ["nobody"]])
            plan = plan_corpus(replace(config, max_slices=0, deny_lists=(path,)))
            assert rows[0]["patient_id"] not in chosen(plan, "patient_id")
            gone = {row["patient_id"] for row in rows} - set(chosen(plan, "patient_id"))
            assert gone == {rows[0]["patient_id"]}
            assert any("mine.csv" in row["reason"] for row in left_out(plan))

    def test_rows_of_a_list_mean_all_their_values(self, config: PlanConfig, tmp_path: Path) -> None:
        row = plan_corpus(replace(config, max_slices=0)).chosen.to_pylist()[0]
        path = tmp_path / "mine.csv"
        path.write_text(f"collection_id,PatientID\nelsewhere,{row['patient_id']}\n")
        plan = plan_corpus(replace(config, max_slices=0, deny_lists=(path,)))
        assert row["patient_id"] in chosen(plan, "patient_id")

    def test_lists_that_cannot_be_understood(self, config: PlanConfig, tmp_path: Path) -> None:
        path = tmp_path / "mine.csv"
        path.write_text("name\nJane\n")
        with pytest.raises(DataError, match=r"DATA-34.*PatientID.*it has name"):
            plan_corpus(replace(config, deny_lists=(path,)))
        path = tmp_path / "mine.parquet"
        path.write_bytes(b"PAR1 not at all")
        with pytest.raises(DataError, match="DATA-34"):
            plan_corpus(replace(config, deny_lists=(path,)))
        with pytest.raises(DataError, match="DATA-01"):
            plan_corpus(replace(config, deny_lists=(tmp_path / "none.csv",)))

    def test_test_patients_of_a_registry(
        self, config, tmp_path, save, run_ingest, key_file
    ) -> None:
        """A registry whose only patient is a test patient, and the deny list made from it."""
        name = chosen(plan_corpus(config), "patient_id")[0]
        save(tmp_path / "scans" / name / "t1.nii.gz", "brain", 1)
        registry = Registry.create(tmp_path / "registry", fractions=(0.0, 0.0, 1.0))
        named = {"subject_namespace": "idc", "subject": f"(?P<subject>{name})"}
        run_ingest(registry.path, tmp_path / "scans", source=named)
        fingerprint(registry, jobs=1)
        path = tmp_path / "hospital.parquet"
        write_deny_list(deny_list_of(registry), path)
        for given in (registry.path, path):
            plan = plan_corpus(
                replace(config, max_slices=0, deny_lists=(given,), key_file=key_file)
            )
            assert name not in chosen(plan, "patient_id")
            assert any("test patients of your registry" in r["reason"] for r in left_out(plan))
        with pytest.raises(ConfigError, match=r"CONFIG-05.*keyed"):
            plan_corpus(replace(config, deny_lists=(path,)))


class TestWhatIsShort:
    def test_too_many_slices(self, config: PlanConfig) -> None:
        most = plan_corpus(replace(config, max_slices=0)).num_slices
        check_met(plan_corpus(replace(config, max_slices=most)))
        with pytest.raises(DataError, match=f"DATA-33.*{most:,} slices may be chosen") as caught:
            check_met(plan_corpus(replace(config, max_slices=most + 1)))
        assert f"--max-slices {most}" in caught.value.fix
        assert "licence CC-BY-NC-4.0" in caught.value.fix

    def test_missing_regions(self, config: PlanConfig) -> None:
        with pytest.raises(
            DataError, match=r"no series of elbow may be chosen .it has none"
        ) as caught:
            check_met(plan_corpus(replace(config, regions=("elbow", "knee"), max_slices=10)))
        assert "leave elbow out" in caught.value.fix

    def test_only_reasons_of_the_wanted_regions(self, config: PlanConfig) -> None:
        plan = plan_corpus(replace(config, regions=("foot",), max_slices=90_000))
        lost = plan.sql(
            "SELECT sum(num_slices)::INT AS n FROM series "
            "WHERE region = 'foot' AND left_out = 'licence CC-BY-NC-4.0'"
        )["n"][0].as_py()
        with pytest.raises(DataError, match="DATA-33") as caught:
            check_met(plan)
        assert f"{lost:,} by 'licence CC-BY-NC-4.0'" in caught.value.fix

    def test_nothing_at_all(self, config: PlanConfig) -> None:
        plan = plan_corpus(replace(config, min_slices=10_000))
        assert plan.num_slices == 0
        with pytest.raises(DataError, match=r"DATA-33.* 0 slices may be chosen"):
            check_met(plan)

    @pytest.mark.parametrize(
        ("change", "meant"),
        [
            ({"regions": ("brian",)}, "brain"),
            ({"exclude_collections": ("alpah",)}, "alpha"),
            ({"tasks": ("prostate-x",)}, "prostatex"),
        ],
    )
    def test_names_that_are_almost_right(self, config, change, meant) -> None:
        with pytest.raises(ConfigError, match="CONFIG-01") as caught:
            plan_corpus(replace(config, **change))
        assert meant in caught.value.fix

    @pytest.mark.parametrize(
        "change",
        [{"max_slices": -1}, {"balance": 1.5}, {"fractions": (0.5, 0.1, 0.1)}, {"min_slices": 0}],
    )
    def test_numbers_out_of_range(self, config: PlanConfig, change: dict) -> None:
        with pytest.raises(ConfigError, match="CONFIG-01"):
            plan_corpus(replace(config, **change))


class TestIndex:
    def test_damaged(self, config: PlanConfig, index: Path) -> None:
        path = index / "idc_index.parquet"
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DataError, match=r"DATA-32.*force-reinstall"):
            plan_corpus(config)

    def test_missing(self, config: PlanConfig, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="DATA-01"):
            plan_corpus(replace(config, source=str(tmp_path / "none")))

    def test_without_a_column(self, config, rows, write_index) -> None:
        bare = [{k: v for k, v in row.items() if k != "license_short_name"} for row in rows]
        with pytest.raises(DataError, match=r"DATA-32.*license_short_name"):
            plan_corpus(replace(config, source=str(write_index(bare, "bare"))))

    def test_a_series_twice(self, config, rows, write_index) -> None:
        with pytest.raises(DataError, match=r"DATA-32.*a series twice"):
            plan_corpus(replace(config, source=str(write_index([*rows, rows[1]], "twice"))))

    def test_without_mr(self, config, rows, write_index) -> None:
        none = [row for row in rows if row["Modality"] == "CT"]
        with pytest.raises(DataError, match=r"DATA-32.*no series of modality MR"):
            plan_corpus(replace(config, source=str(write_index(none, "ct"))))


class TestQueries:
    def test_select(self, config: PlanConfig) -> None:
        plan = plan_corpus(config)
        (row,) = plan.sql(
            "SELECT sum(num_slices)::INT AS n FROM series WHERE rank >= 0"
        ).to_pylist()
        assert row["n"] == plan.num_slices == totals(plan)["slices"]

    @pytest.mark.parametrize(
        "query",
        [
            "DROP TABLE series",
            "SELECT 1; SELECT 2",
            "SELECT * FROM read_csv('/etc/passwd')",
            "COPY series TO '/tmp/stolen.csv'",
            "SELECT nothing FROM series",
        ],
    )
    def test_nothing_else(self, config: PlanConfig, query: str) -> None:
        with pytest.raises(ConfigError, match="CONFIG-01"):
            plan_corpus(config).sql(query)


class TestCosts:
    def test_formula(self, config: PlanConfig) -> None:
        """Hours are slices x epochs / rate / 3600; a rate from MFU is called derived."""
        plan = plan_corpus(config)
        measured = cost_rows(plan, Costs(images_per_second=10, epochs=3, price_per_hour=2))
        assert measured[-2]["value"] == pytest.approx(plan.num_slices * 3 / 10 / 3600)
        assert measured[-1]["value"] == pytest.approx(2 * measured[-2]["value"])
        derived = cost_rows(plan, Costs(mfu=0.4, peak_tflops=790, tflop_per_image=0.446))
        # 708 images/s: the row "B/16, 40 % of 790" of the design's table of ceilings.
        assert derived[-1]["value"] == pytest.approx(plan.num_slices / 708 / 3600, rel=1e-3)
        assert "not measured" in derived[-1]["from"]

    def test_no_figure_no_row(self, config: PlanConfig) -> None:
        rows = cost_rows(plan_corpus(config), Costs())
        assert [row["what"] for row in rows] == ["download"]

    @pytest.mark.parametrize(
        "costs",
        [
            Costs(mfu=0.4),
            Costs(price_per_hour=2),
            Costs(images_per_second=-1),
            Costs(mfu=2, peak_tflops=1, tflop_per_image=1),
            Costs(images_per_second=5, mfu=0.4, peak_tflops=1, tflop_per_image=1),
        ],
    )
    def test_figures_that_do_not_fit(self, config: PlanConfig, costs: Costs) -> None:
        with pytest.raises(ConfigError, match=r"CONFIG-0[15]"):
            cost_rows(plan_corpus(config), costs)
