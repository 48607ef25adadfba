from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator

import pytest

from core_mri.errors import ConfigError
from data_registry.governance.licences import (
    NOTHING,
    PERMISSIONS,
    REQUIREMENTS,
    UNKNOWN,
    Terms,
    _table,
    licence_terms,
    mixture,
    most_restrictive,
    share_alike_conflict,
)

HASH = "sha256:" + "0f" * 32
DECLARED = {
    "LicenseRef-DUA": Terms(commercial="no", redistribution="no", weights="yes", attribution="yes"),
    "LicenseRef-open": Terms(commercial="yes", redistribution="yes", share_alike="no"),
}
ORDER = {"no": 0, "unstated": 1, "yes": 2}

IDS = (*_table(), *DECLARED, "LicenseRef-other", HASH, UNKNOWN, "No-Such-1.0")


def expression(draw: random.Random, depth: int = 0) -> str:
    if depth == 3 or draw.random() < 0.5:
        return draw.choice(IDS)
    one, other = expression(draw, depth + 1), expression(draw, depth + 1)
    return f"({one}) {draw.choice(('AND', 'OR'))} ({other})"


def some(draw: random.Random) -> list[str]:
    return [expression(draw) for _ in range(draw.randint(1, 4))]


@pytest.fixture(params=range(8))
def draws(request: pytest.FixtureRequest) -> Iterator[random.Random]:
    """A hundred random numbers generators each."""
    return (random.Random(100 * request.param + number) for number in range(100))


def permits_no_more(one: Terms, other: Terms) -> bool:
    less = all(ORDER[getattr(one, n)] <= ORDER[getattr(other, n)] for n in PERMISSIONS)
    more = all(ORDER[getattr(one, n)] >= ORDER[getattr(other, n)] for n in REQUIREMENTS)
    return less and more and one.known <= other.known


class TestMixing:
    def test_commutative(self, draws: Iterator[random.Random]) -> None:
        for draw in draws:
            licences = some(draw)
            mixed = draw.sample(licences, len(licences))
            assert most_restrictive(mixed, DECLARED) == most_restrictive(licences, DECLARED)
            assert mixture(mixed) == mixture(licences)

    def test_associative(self, draws: Iterator[random.Random]) -> None:
        for draw in draws:
            a, b, c = some(draw), some(draw), some(draw)
            left = [mixture([mixture(a), mixture(b)]), mixture(c)]
            right = [mixture(a), mixture([mixture(b), mixture(c)])]
            assert mixture(left) == mixture(right) == mixture(a + b + c)
            assert most_restrictive(left, DECLARED) == most_restrictive(right, DECLARED)

    def test_idempotent(self, draws: Iterator[random.Random]) -> None:
        for draw in draws:
            licence = expression(draw)
            assert most_restrictive([licence] * 3, DECLARED) == licence_terms(licence, DECLARED)
            assert mixture([mixture([licence])] * 2) == mixture([licence])

    def test_another_licence_never_permits_more(self, draws: Iterator[random.Random]) -> None:
        for draw in draws:
            licences, more = some(draw), expression(draw)
            before = most_restrictive(licences, DECLARED)
            after = most_restrictive([*licences, more], DECLARED)
            assert permits_no_more(after, before)
            assert permits_no_more(after, licence_terms(more, DECLARED))
            if share_alike_conflict(licences, DECLARED):
                assert share_alike_conflict([*licences, more], DECLARED)

    def test_unknown_absorbs(self, draws: Iterator[random.Random]) -> None:
        for draw in draws:
            assert most_restrictive([*some(draw), UNKNOWN], DECLARED) == NOTHING
        assert not any(NOTHING.permits(use) for use in PERMISSIONS)

    def test_a_choice_is_one_of_the_alternatives(self, draws: Iterator[random.Random]) -> None:
        for draw in draws:
            one, other = expression(draw), expression(draw)
            chosen = licence_terms(f"({one}) OR ({other})", DECLARED)
            assert chosen in (licence_terms(one, DECLARED), licence_terms(other, DECLARED))


class TestTable:
    @pytest.mark.parametrize(
        ("licence", "permitted", "forbidden", "required"),
        [
            ("CC0-1.0", "commercial redistribution derivatives weights", "", ""),
            ("CC-BY-4.0", "commercial redistribution derivatives weights", "", "attribution"),
            ("CC-BY-SA-4.0", "commercial weights", "", "attribution share_alike"),
            ("CC-BY-NC-4.0", "redistribution derivatives weights", "commercial", "attribution"),
            ("CC-BY-ND-4.0", "commercial redistribution", "derivatives", "attribution"),
            ("CC-BY-NC-ND-4.0", "redistribution", "commercial derivatives", "attribution"),
            ("CC-BY-NC-SA-4.0", "weights", "commercial", "attribution share_alike"),
            ("MIT", "commercial redistribution weights", "", "attribution"),
            ("GPL-3.0-only", "commercial weights", "", "attribution share_alike"),
            ("PDDL-1.0", "commercial redistribution derivatives weights", "", ""),
            ("ODbL-1.0", "commercial weights", "", "attribution share_alike"),
        ],
    )
    def test_what_the_texts_say(
        self, licence: str, permitted: str, forbidden: str, required: str
    ) -> None:
        terms = licence_terms(licence)
        assert terms.known
        assert terms.permits(*permitted.split())
        assert all(getattr(terms, use) == "no" for use in forbidden.split())
        assert {n for n in REQUIREMENTS if getattr(terms, n) == "yes"} == set(required.split())

    def test_no_derivatives_says_nothing_of_weights(self) -> None:
        assert licence_terms("CC-BY-ND-4.0").weights == "unstated"

    def test_every_id_adapts_to_listed_ids(self) -> None:
        for item in _table().values():
            assert item.adapts_to <= set(_table())
            assert bool(item.adapts_to) == (item.terms.share_alike == "yes")

    def test_case_and_exceptions(self) -> None:
        assert licence_terms("cc-by-4.0") == licence_terms("CC-BY-4.0")
        assert mixture(["cc-by-4.0", "CC-BY-4.0"]) == "CC-BY-4.0"
        exception = "GPL-2.0-only WITH Classpath-exception-2.0"
        assert licence_terms(exception) == licence_terms("GPL-2.0-only")
        assert mixture([exception]) == exception


class TestOtherTexts:
    def test_named_texts_say_nothing_until_declared(self) -> None:
        for licence in ("LicenseRef-DUA", HASH):
            assert licence_terms(licence) == Terms()
            assert not licence_terms(licence).permits("redistribution")
        assert licence_terms("LicenseRef-DUA", DECLARED).weights == "yes"

    def test_ids_nobody_knows_are_unknown(self) -> None:
        assert licence_terms("No-Such-1.0") == licence_terms(UNKNOWN) == NOTHING
        assert licence_terms("NOASSERTION") == NOTHING
        assert "nothing" in str(NOTHING)

    def test_hashes_become_names_that_spdx_allows(self) -> None:
        assert mixture(["MIT", HASH]) == f"LicenseRef-sha256-{'0f' * 32} AND MIT"

    @pytest.mark.parametrize(
        "wrong",
        ["", " ", "CC BY 4.0", "(MIT", "MIT)", "MIT AND", "AND", "MIT OR OR MIT", "sha256:abc",
         "MIT WITH", "CC-BY-4.0, MIT", "a:b", "()"],
    )  # fmt: skip
    def test_no_expression(self, wrong: str) -> None:
        with pytest.raises(ConfigError, match=r"CONFIG-01.*is no SPDX id"):
            licence_terms(wrong)


class TestExpressions:
    def test_of_a_mixture(self) -> None:
        assert mixture(["CC-BY-NC-4.0", "CC-BY-4.0"]) == "CC-BY-4.0 AND CC-BY-NC-4.0"
        assert mixture(["MIT OR GPL-2.0-only", "CC-BY-4.0 AND MIT"]) == (
            "(GPL-2.0-only OR MIT) AND CC-BY-4.0 AND MIT"
        )

    def test_and_binds_stronger_than_or(self) -> None:
        assert licence_terms("MIT OR CC0-1.0 AND unknown") == licence_terms("MIT")
        assert licence_terms("(MIT OR CC0-1.0) AND unknown") == NOTHING

    def test_or_takes_the_freer_one_and_not_both(self) -> None:
        """CC-BY-NC asks for no share-alike and GPL permits commerce: no choice gives the two."""
        assert licence_terms("CC-BY-NC-4.0 OR GPL-3.0-only") == licence_terms("GPL-3.0-only")


class TestShareAlike:
    @pytest.mark.parametrize(
        ("licences", "conflict"),
        [
            (["CC-BY-SA-4.0", "GPL-2.0-only"], True),
            (["CC-BY-SA-3.0", "GPL-3.0-only"], True),
            (["CC-BY-SA-4.0", "GPL-3.0-only", "MIT"], False),
            (["CC-BY-SA-4.0", "CC-BY-SA-3.0"], False),
            (["CC-BY-SA-4.0", "CC-BY-NC-SA-4.0"], True),
            (["CC-BY-SA-4.0", "CC-BY-NC-4.0"], True),
            (["CC-BY-NC-SA-4.0", "CC-BY-NC-4.0", "CC-BY-4.0"], False),
            (["ODbL-1.0", "CC-BY-SA-4.0"], True),
            (["GPL-2.0-or-later", "GPL-3.0-only"], False),
            (["GPL-2.0-only", "GPL-3.0-only"], True),
            (["CC-BY-SA-4.0"], False),
        ],
    )
    def test_conflicts_are_named(self, licences: list[str], conflict: bool) -> None:
        named = share_alike_conflict(licences)
        assert named == (tuple(sorted(licences)) if conflict else ())
        mixed = most_restrictive(licences)
        assert (mixed.derivatives == "no", mixed.weights == "unstated") == (conflict, conflict)


def test_light() -> None:
    code = (
        "import sys, data_registry.governance.licences as l; l.licence_terms('MIT');"
        "print({'torch', 'duckdb', 'pyarrow', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
