"""The licence names of the Imaging Data Commons as SPDX ids, and which ones a plan may take."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from data_registry.governance.licences import licence_terms
from data_registry.planning.deny_patients import unknown

_CREATIVE_COMMONS = re.compile(r"CC (BY(?:-NC)?(?:-SA|-ND)?) ([1-4]\.[05])", re.IGNORECASE)


def spdx_id(name: str) -> str:
    """The SPDX id of a licence by its short name in the index.

    ``CC BY 4.0`` is ``CC-BY-4.0``; other names become ``LicenseRef-`` and their words; no name is
    ``unknown``.
    """
    if match := _CREATIVE_COMMONS.fullmatch(name.strip()):
        return f"CC-{match[1].upper()}-{match[2]}"
    words = re.findall("[A-Za-z0-9]+", name)
    return f"LicenseRef-{'-'.join(words)}" if words else "unknown"


def licences_allowed(wanted: Sequence[str], present: Collection[str]) -> set[str]:
    """Which licences of an index may be taken.

    Args:
        wanted: Any of ``commercial-ok`` (commercial use and release of trained weights are
            permitted in so many words), ``any-known`` (whatever is named, permitted or not), ids.
        present: Licences of the index.

    Raises:
        ConfigError: CONFIG-01 when an id is none of the index.
    """
    groups = {
        "commercial-ok": {
            one for one in present if licence_terms(one).permits("commercial", "weights")
        },
        "any-known": {one for one in present if licence_terms(one).known},
    }
    by_name = {one.lower(): {one} for one in present} | groups
    allowed: set[str] = set()
    for name in wanted:
        if name.lower() not in by_name:
            raise unknown("licence", name, [*groups, *sorted(present)])
        allowed |= by_name[name.lower()]
    return allowed
