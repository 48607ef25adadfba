"""What licences permit and require, alone and mixed: ``licence_terms``, ``most_restrictive``.

A licence is an SPDX expression: ids of the table `licences.yaml`; ``LicenseRef-NAME`` for any other
text, whose terms its source card declares; ``sha256:HEX``, the hash of such a text; ``unknown``; or
these joined by ``AND``, ``OR`` and parentheses. Only ``"yes"`` permits: what a licence does not say
is not permitted. The table is a reading by engineers and no legal advice.

Terms form a lattice, and mixing is its meet: the least permission and the greatest requirement of
all members. So mixing is commutative, associative and idempotent, another licence never permits
more, and ``unknown``, the least element, absorbs everything.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core_mri.errors import ConfigError

Answer = Literal["yes", "no", "unstated"]
Declared = Mapping[str, "Terms"]
"""Terms of licences that the table does not have, by id."""

UNKNOWN = "unknown"
PERMISSIONS = ("commercial", "redistribution", "derivatives", "weights")
REQUIREMENTS = ("share_alike", "attribution")

_TABLE = Path(__file__).with_name("licences.yaml")
_WORD = re.compile(r"\s*(\(|\)|[A-Za-z0-9][A-Za-z0-9.+:-]*)")
_RANK: dict[Answer, int] = {"no": 0, "unstated": 1, "yes": 2}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a licence says; ``"unstated"`` where it says nothing, which permits nothing."""

    commercial: Answer = "unstated"
    """Use for profit."""
    redistribution: Answer = "unstated"
    """Giving copies to others."""
    derivatives: Answer = "unstated"
    """Giving changed copies to others."""
    weights: Answer = "unstated"
    """Releasing weights trained on the data."""
    share_alike: Answer = "unstated"
    """What is made from it must carry the same licence."""
    attribution: Answer = "unstated"
    """Its authors, or its notice, must be named."""
    known: bool = True
    """Its text is known, or named by ``LicenseRef-`` or a hash; not so for ``unknown``."""

    def permits(self, *uses: str) -> bool:
        """Whether all of `PERMISSIONS` named are permitted, in so many words."""
        return all(getattr(self, use) == "yes" for use in uses)

    def __str__(self) -> str:
        if not self.known:
            return "licence not known: nothing is permitted"
        said = [f"{use}: {getattr(self, use)}" for use in (*PERMISSIONS, *REQUIREMENTS)]
        return ", ".join(said).replace("_", "-")


NOTHING = Terms(
    commercial="no", redistribution="no", derivatives="no", weights="no", share_alike="yes",
    attribution="yes", known=False,
)  # fmt: skip
"""Terms of an unknown licence: nothing permitted, everything required."""


IN_CONFLICT = Terms(
    commercial="yes", redistribution="yes", derivatives="no", weights="unstated",
    share_alike="yes", attribution="no",
)  # fmt: skip
"""What is left at most where share-alike licences conflict."""


@dataclass(frozen=True)
class _Listed:
    terms: Terms
    adapts_to: frozenset[str]


def licence_terms(licence: str, declared: Declared | None = None) -> Terms:
    """What a licence permits and requires.

    ``A AND B`` is the most restrictive of both. ``A OR B`` leaves the choice to whoever uses the
    data: it means the one of them that permits more (commercial use first, then redistribution,
    weights, derivatives, then the lighter requirements), never the permissions of both together.
    An exception (``A WITH E``) counts as A, as exceptions only add permissions.

    A ``LicenseRef-`` or ``sha256:`` licence that nobody declared is known by name, and says
    nothing. An id that neither the table nor `declared` has is as good as ``unknown``.

    Args:
        licence: An SPDX expression, see above; the case of listed ids does not matter.
        declared: Terms of further ids, which win over those of the table.

    Raises:
        ConfigError: CONFIG-01 when it is no such expression.
    """
    return _mixed(_chosen(parse_licence(licence), declared or {}), declared or {})


def most_restrictive(licences: Iterable[str], declared: Declared | None = None) -> Terms:
    """What a mixture of data under several licences permits and requires.

    Where share-alike licences conflict (`share_alike_conflict`), no adaptation of the whole can be
    published: derivatives are ``"no"`` then, and weights at most ``"unstated"``.

    Args:
        licences: At least one.
        declared: As `licence_terms`.

    Raises:
        ConfigError: As `licence_terms`.
    """
    return licence_terms(mixture(licences), declared)


def mixture(licences: Iterable[str]) -> str:
    """The SPDX expression of data under several licences: each once, sorted, joined by ``AND``.

    ``sha256:HEX`` becomes ``LicenseRef-sha256-HEX``, which SPDX allows.

    Args:
        licences: At least one.

    Raises:
        ConfigError: As `licence_terms`.
    """
    return str(_Node("AND", frozenset(parse_licence(one) for one in licences)).flat())


def share_alike_conflict(
    licences: Iterable[str], declared: Declared | None = None
) -> tuple[str, ...]:
    """Share-alike licences of a mixture under which no adaptation of the whole can be published.

    They conflict when no licence is left that all of them accept for adaptations, such as
    CC-BY-SA-3.0 and GPL-2.0-only, or when what is left permits a commercial use that another
    licence of the mixture does not, such as CC-BY-SA-4.0 with CC-BY-NC-4.0.

    Returns:
        The ids that are part of the conflict, sorted; empty when there is none.
    """
    ids = _chosen(parse_licence(mixture(licences)), declared or {})
    return _conflict(ids, declared or {})


def is_listed(one: str) -> bool:
    """Whether the table has an id."""
    return one.partition(" WITH ")[0] in _table()


@dataclass(frozen=True)
class _Node:
    """``AND`` or ``OR`` of members; members are ids or further nodes."""

    kind: str
    members: frozenset[_Node | str]

    def flat(self) -> _Node | str:
        """Members of the same kind taken up, and a single member for itself."""
        members: set[_Node | str] = set()
        for member in self.members:
            inner = member.flat() if isinstance(member, _Node) else member
            same = isinstance(inner, _Node) and inner.kind == self.kind
            members |= inner.members if isinstance(inner, _Node) and same else {inner}
        return next(iter(members)) if len(members) == 1 else _Node(self.kind, frozenset(members))

    def ids(self) -> Iterator[str]:
        """All ids below."""
        for member in self.members:
            yield from [member] if isinstance(member, str) else member.ids()

    def __str__(self) -> str:
        parts = [f"({m})" if isinstance(m, _Node) else m for m in self.members]
        return f" {self.kind} ".join(sorted(parts))


def parse_licence(licence: str) -> _Node | str:
    """The tree of a licence expression: an id, or a node of ``AND`` or ``OR``.

    Raises:
        ConfigError: CONFIG-01 when it is no expression of ids.
    """
    words, end = [], 0
    while found := _WORD.match(licence, end):
        words.append(found[1])
        end = found.end()
    try:
        if licence[end:].strip() or not words:
            raise ValueError
        tree = _either(words)
        if words:
            raise ValueError
    except ValueError:
        raise ConfigError(
            "CONFIG-01",
            f"licence {licence!r} is no SPDX id.",
            fix="Use an id such as CC-BY-4.0 or MIT, several joined by AND or OR, "
            "LicenseRef-NAME, sha256:HEX of the text, or unknown.",
        ) from None
    return tree.flat() if isinstance(tree, _Node) else tree


def _either(words: list[str]) -> _Node | str:
    """Grammar: either = both (OR both)*; both = one (AND one)*; one = ID [WITH ID] | (either)."""
    return _joined("OR", lambda: _joined("AND", lambda: _one(words), words), words)


def _joined(kind: str, part: Any, words: list[str]) -> _Node | str:
    members = [part()]
    while words and words[0] == kind:
        words.pop(0)
        members.append(part())
    return _Node(kind, frozenset(members)) if len(members) > 1 else members[0]


def _one(words: list[str]) -> _Node | str:
    word = words.pop(0) if words else ")"
    if word == "(":
        inner = _either(words)
        if not words or words.pop(0) != ")":
            raise ValueError
        return inner
    if word in {")", "AND", "OR", "WITH"}:
        raise ValueError
    if ":" in word:
        if not re.fullmatch("sha256:[0-9a-f]{64}", word):
            raise ValueError
        word = word.replace("sha256:", "LicenseRef-sha256-")
    if words[:1] == ["WITH"]:
        if len(words) < 2 or not words[1][0].isalnum():
            raise ValueError
        word = f"{word} WITH {words[1]}"
        del words[:2]
    return _listed_name(word)


def _listed_name(word: str) -> str:
    """The id as the table spells it; any other as it is."""
    base, joint, exception = word.partition(" WITH ")
    if base.lower() == UNKNOWN or base in {"NOASSERTION", "NONE"}:
        return UNKNOWN
    return next((i for i in _table() if i.lower() == base.lower()), base) + joint + exception


@functools.cache
def _table() -> dict[str, _Listed]:
    import yaml

    listed: dict[str, _Listed] = {}
    for entry in yaml.safe_load(_TABLE.read_text(encoding="utf-8")):
        answers: dict[str, Answer] = dict.fromkeys(entry.get("permits", ()), "yes")
        answers |= dict.fromkeys(entry.get("forbids", ()), "no")
        requires = entry.get("requires", ())
        answers |= {name: "yes" if name in requires else "no" for name in REQUIREMENTS}
        item = _Listed(Terms(**answers), frozenset(entry.get("adapts_to", ())))  # type: ignore[arg-type]
        listed |= dict.fromkeys(entry["ids"], item)
    return listed


def _terms_of(one: str, declared: Declared) -> Terms:
    """Terms of one id."""
    base = one.partition(" WITH ")[0]
    if base in declared:
        return declared[base]
    if base in _table():
        return _table()[base].terms
    return Terms() if base.startswith("LicenseRef-") else NOTHING


def _chosen(tree: _Node | str, declared: Declared) -> frozenset[str]:
    """The ids that bind: all of ``AND``, the best alternative of ``OR``."""
    if isinstance(tree, str):
        return frozenset({tree})
    parts = [_chosen(member, declared) for member in tree.members]
    if tree.kind == "AND":
        return frozenset().union(*parts)
    return max(parts, key=lambda ids: (_liberty(_mixed(ids, declared)), sorted(ids)))


def _liberty(terms: Terms) -> tuple[int, ...]:
    """The more it permits, the greater."""
    uses = ("commercial", "redistribution", "weights", "derivatives")
    return (
        terms.known,
        *(_RANK[getattr(terms, use)] for use in uses),
        *(-_RANK[getattr(terms, name)] for name in REQUIREMENTS),
    )


def _mixed(ids: Collection[str], declared: Declared) -> Terms:
    """The meet of all, less what a conflict of share-alike licences forbids."""
    terms = functools.reduce(meet, (_terms_of(one, declared) for one in ids))
    return meet(terms, IN_CONFLICT) if _conflict(ids, declared) else terms


def meet(one: Terms, other: Terms) -> Terms:
    """The most restrictive of both: the least permission, the greatest requirement."""
    if not (one.known and other.known):
        return NOTHING
    answers: dict[str, Any] = {}
    for names, strictest in ((PERMISSIONS, min), (REQUIREMENTS, max)):
        for name in names:
            both = (getattr(one, name), getattr(other, name))
            answers[name] = strictest(both, key=_RANK.__getitem__)
    return Terms(**answers)


def _conflict(ids: Collection[str], declared: Declared) -> tuple[str, ...]:
    accepts = {
        one: _table()[base].adapts_to
        for one in ids
        if (base := one.partition(" WITH ")[0]) in _table() and _table()[base].adapts_to
    }
    if not accepts:
        return ()
    commercial = min(_RANK[_terms_of(one, declared).commercial] for one in ids)
    left = frozenset.intersection(*accepts.values())
    if any(_RANK[_terms_of(one, declared).commercial] <= commercial for one in left):
        return ()
    others = {one for one in ids if _RANK[_terms_of(one, declared).commercial] == commercial}
    return tuple(sorted({*accepts} if not left else {*accepts} | others))
