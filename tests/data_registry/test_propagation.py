"""The strictest licence goes with the data: to cohorts, exports and model cards."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from core_mri.__main__ import main
from core_mri.errors import ConfigError, DataError
from data_registry import IngestConfig, Registry, Source, ingest
from data_registry.cohorts import freeze, load
from data_registry.export import ExportConfig, export
from data_registry.governance.licences import Terms
from data_registry.governance.propagation import (
    RegisteredSource,
    check_export,
    may_redistribute,
    mixture_of,
    noncommercial_cost,
    registered_sources,
)
from data_registry.slices import SliceDataset
from data_registry.source_cards import Agreement, CardFacts, DeclaredTerms

OWN_USE = CardFacts(
    title="Scans of a hospital",
    agreement=Agreement(name="Data use agreement", version="3", url="https://example.org/dua"),
    citation="Nobody, 2020",
    terms=DeclaredTerms(
        permits=("weights",), forbids=("redistribution", "commercial"), requires=("attribution",)
    ),
)
SOURCES = {
    "free": ("CC0-1.0", None),
    "named": ("CC-BY-4.0", None),
    "academic": ("CC-BY-NC-4.0", None),
    "agreed": ("LicenseRef-DUA", OWN_USE),
    "mystery": ("unknown", None),
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Registry:
    """Five sources, a knee of two patients each."""
    from tests.data_registry.conftest import save_phantom

    folder = tmp_path_factory.mktemp("mixed")
    sources = []
    for number, (name, (licence, card)) in enumerate(SOURCES.items()):
        for patient in range(2):
            path = folder / name / f"patient{patient}" / "knee_T1.nii.gz"
            save_phantom(path, "knee", 10 * number + patient)
        sources.append(Source(name=name, licence=licence, root=str(folder / name), card=card))
    path = folder / "reg"
    ingest(IngestConfig(registry=path, sources=tuple(sources), key_file=key_file, jobs=1))
    return Registry.open(path)


def of(*names: str) -> str:
    return "source IN ({})".format(", ".join(f"'{name}'" for name in names))


class TestRegistry:
    def test_keeps_what_the_card_told(self, registry: Registry) -> None:
        known = registered_sources(registry)
        assert list(known) == sorted(SOURCES)
        assert known["agreed"].facts == OWN_USE
        assert known["agreed"].terms == Terms(
            commercial="no", redistribution="no", weights="yes", attribution="yes"
        )
        assert known["free"].facts == CardFacts()

    def test_two_readings_of_one_text_give_the_stricter_one(self) -> None:
        lenient = CardFacts(terms=DeclaredTerms(permits=("commercial", "weights")))
        both = [
            RegisteredSource(name="a", licence="LicenseRef-DUA", facts=OWN_USE),
            RegisteredSource(name="b", licence="LicenseRef-DUA", facts=lenient),
        ]
        assert mixture_of(both).terms.commercial == "no"
        assert mixture_of(both).terms.weights == "yes"
        assert mixture_of(both) == mixture_of(reversed(both))


class TestCohorts:
    def test_are_frozen_with_their_licence(self, registry: Registry) -> None:
        freeze(registry, "two", of("named", "academic"))
        assert load(registry, "two").licence == "CC-BY-4.0 AND CC-BY-NC-4.0"

    def test_without_noncommercial_sources(
        self, registry: Registry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["data", "query", "--registry", str(registry.path), "--exclude-noncommercial"]
        assert main([*words, "--where", "region = 'knee'", "--name", "business"]) == 0
        told = capsys.readouterr()
        assert "licence CC-BY-4.0 AND CC0-1.0" in told.out
        assert "commercial use: 6 (" in told.err
        assert "academic 2, agreed 2, mystery 2" in told.err
        assert load(registry, "business").num_volumes == 4
        sql = "SELECT volume_id FROM volumes WHERE region = 'knee'"
        assert main([*words, "--sql", sql, "--name", "same"]) == 0
        assert load(registry, "same").digest == load(registry, "business").digest

    def test_needs_a_query(self, registry: Registry) -> None:
        words = ["data", "query", "--registry", str(registry.path), "--exclude-noncommercial"]
        assert main(words) == 2


class TestExport:
    def run(self, registry: Registry, out: Path, **changes: object):
        config = {"registry": registry.path, "out": out, "format": "nifti", **changes}
        return export(ExportConfig(**config))  # type: ignore[arg-type]

    def test_unknown_licences_never_leave(self, registry: Registry, tmp_path: Path) -> None:
        for where in ("", of("free", "mystery")):
            with pytest.raises(DataError, match=r"DATA-28.*mystery.*unknown"):
                self.run(registry, tmp_path / "out", where=where)
        assert not (tmp_path / "out").exists()

    def test_the_strictest_terms_lie_beside(self, registry: Registry, tmp_path: Path) -> None:
        where = of("free", "academic", "agreed")
        report = self.run(registry, tmp_path, where=where)
        assert (report.written, report.licence) == (
            6,
            "CC-BY-NC-4.0 AND CC0-1.0 AND LicenseRef-DUA",
        )
        text = (tmp_path / "LICENSE").read_text()
        for said in (report.licence, "No commercial use.", "No copies to others.", "Nobody, 2020"):
            assert said in text
        mark = json.loads((tmp_path / "export.json").read_text())
        assert mark["licence"]["terms"]["redistribution"] == "no"
        assert self.run(registry, tmp_path, where=where).kept == 6
        with (tmp_path / "manifest.csv").open() as file:
            licences = {line["source"]: line["licence"] for line in csv.DictReader(file)}
        assert licences["agreed"] == "LicenseRef-DUA"

    @pytest.mark.parametrize("form", ["bids", "webdataset"])
    def test_in_every_format(self, registry: Registry, tmp_path: Path, form: str) -> None:
        self.run(registry, tmp_path, where=of("named", "academic"), format=form)
        assert "CC-BY-4.0 AND CC-BY-NC-4.0" in (tmp_path / "LICENSE").read_text()

    def test_without_noncommercial_sources(self, registry: Registry, tmp_path: Path) -> None:
        report = self.run(registry, tmp_path, exclude_noncommercial=True)
        assert report.noncommercial == {"academic": 2, "agreed": 2, "mystery": 2}
        assert (report.written, report.licence) == (4, "CC-BY-4.0 AND CC0-1.0")
        with pytest.raises(ConfigError, match="CONFIG-03"):
            self.run(registry, tmp_path, where=of("free"))

    def test_a_public_release_needs_permission_to_copy(
        self, registry: Registry, tmp_path: Path
    ) -> None:
        with pytest.raises(DataError, match=r"DATA-28.*agreed: LicenseRef-DUA forbids it"):
            self.run(registry, tmp_path / "out", where=of("free", "agreed"), release="public")

    def test_who_may_be_given_copies(self, registry: Registry) -> None:
        known = registered_sources(registry)
        refused = may_redistribute(known.values())
        assert set(refused) == {"agreed", "mystery"}
        silent = RegisteredSource(name="x", licence="LicenseRef-x", facts=CardFacts())
        assert "does not say" in may_redistribute([silent])["x"]
        check_export([silent], public=False)
        assert may_redistribute([known["free"], known["academic"]]) == {}


class TestModelCards:
    def test_of_what_was_trained_on(self, registry: Registry) -> None:
        everything = ("train", "val", "test")
        slices = SliceDataset(registry, split=everything, where=of("named", "academic"))
        card = slices.mixture().card()
        assert card["licence"] == "CC-BY-4.0 AND CC-BY-NC-4.0"
        assert card["terms"]["commercial"] == "no"
        assert any("No commercial use" in limit for limit in card["limits"])

    def test_fine_tuned_weights_keep_the_terms_of_the_first_data(self, registry: Registry) -> None:
        known = registered_sources(registry)
        first = mixture_of([known["agreed"]]).card()
        second = mixture_of([known["named"]]).card(first)
        assert second["licence"] == "CC-BY-4.0 AND LicenseRef-DUA"
        assert (second["terms"]["commercial"], second["terms"]["weights"]) == ("no", "yes")
        silent = mixture_of([known["named"]]).card({})
        assert "does not tell" in silent["limits"][-1]

    def test_conflict_of_weights_and_data(self) -> None:
        def one(licence: str):
            return mixture_of([RegisteredSource(name="a", licence=licence, facts=CardFacts())])

        card = one("GPL-2.0-only").card(one("CC-BY-SA-4.0").card())
        assert card["terms"]["weights"] == "unstated"
        assert any("in conflict" in limit for limit in card["limits"])

    def test_pretraining_leaves_noncommercial_sources_out(self, registry: Registry) -> None:
        from pretrain.config import PretrainConfig
        from pretrain.data import open_slices

        def sources(**changes: object) -> set[str]:
            config = PretrainConfig(registry=registry.path, out=Path("out"), **changes)  # type: ignore[arg-type]
            return {row.source for row in open_slices(config).volumes}

        assert sources(exclude_noncommercial=True) <= {"free", "named"}
        assert sources() - {"free", "named"}
        where = "source <> 'free' OR region = 'knee'"
        assert sources(exclude_noncommercial=True, where=where) <= {"free", "named"}


def test_costs_are_counted(registry: Registry) -> None:
    assert noncommercial_cost(registry, of("free")) == {}
    assert noncommercial_cost(registry, of("free", "academic")) == {"academic": 2}


class TestFoundOut:
    """A licence that was unknown may be told later; no other may change."""

    def test_then_it_counts_for_all_volumes(self, tmp_path: Path, save, run_ingest) -> None:
        save(tmp_path / "in" / "patient1" / "knee_T1.nii.gz", "knee", 1)

        def again(licence: str) -> Registry:
            run_ingest(tmp_path / "reg", tmp_path / "in", source={"licence": licence})
            return Registry.open(tmp_path / "reg")

        registry = again("unknown")
        out = ExportConfig(registry=registry.path, out=tmp_path / "out", format="nifti")
        with pytest.raises(DataError, match="DATA-28"):
            export(out)
        assert [row.licence for row in again("CC-BY-4.0").volumes()] == ["CC-BY-4.0"]
        assert export(out).licence == "CC-BY-4.0"
        for other in ("MIT", "unknown"):
            with pytest.raises(ConfigError, match=r"has licence 'CC-BY-4\.0' so far"):
                again(other)
