"""What each series of an index shows, and whether it is a new acquisition: from its texts alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from data_registry.label_words import UNKNOWN, find_region
from data_registry.labels import cast_votes, count_votes
from data_registry.vocabulary import table as vocabulary
from data_registry.vocabulary import words

if TYPE_CHECKING:
    import pyarrow

    from core_mri.volume import FactValue

_KEYWORDS = {
    "body_part": "BodyPartExamined",
    "description": "SeriesDescription",
    "study_description": "StudyDescription",
    "manufacturer": "Manufacturer",
}
_LABELS = ("region", "region_by", "region_confidence", "sequence", "sequence_confidence", "plane",
           "contrast", "vendor")  # fmt: skip
_COLLECTION_CONFIDENCE = 0.5
"""Our judgement: a patient of such a collection may also have had another part examined."""
_DERIVED = {"ADC", "diffusion map", "T1 map", "T2 map"}
_OTHER_KINDS = {"localizer": "localizer", "field map": "calibration", "MRS": "spectroscopy"}
_NAMED_KINDS = {"reformatted": "derived"}


def add_labels(series: pyarrow.Table, locations: Mapping[str, str]) -> pyarrow.Table:
    """Add the labels of `data_registry.labels`, and the column ``kind``.

    Where no text tells the region, the place of the collection's tumours does, if it is a single
    one (``region_by`` is ``collection``).

    Kinds: ``acquired``; ``copy`` (the acquisition again: cropped, registered, repacked);
    ``derived`` (computed from others); ``localizer``; ``calibration``; ``spectroscopy``. What no
    text tells counts as acquired.

    Args:
        series: `idc_index.SeriesIndex.table`.
        locations: `idc_index.SeriesIndex.locations`.
    """
    places = {
        collection: find_region([place]) if "," not in place else UNKNOWN
        for collection, place in locations.items()
    }
    names = (*_KEYWORDS, "collection")
    texts = list(zip(*(series.column(name).to_pylist() for name in names), strict=True))
    told = {
        distinct: _told(distinct[:-1], places.get(distinct[-1], UNKNOWN)) for distinct in set(texts)
    }
    for number, name in enumerate((*_LABELS, "kind")):
        series = series.append_column(name, [[told[text][number] for text in texts]])
    return series


def _told(texts: tuple[str, ...], place: str) -> tuple[object, ...]:
    pairs = zip(_KEYWORDS.values(), texts, strict=True)
    facts: dict[str, FactValue] = {keyword: text for keyword, text in pairs if text}
    labels = count_votes(facts, "", cast_votes(facts, "", {}))
    if labels.region == UNKNOWN and place != UNKNOWN:
        labels = replace(
            labels, region=place, region_by="collection", region_confidence=_COLLECTION_CONFIDENCE
        )
    kind = _kind(labels.sequence, str(facts.get("SeriesDescription", "")))
    return (*(getattr(labels, name) for name in _LABELS), kind)


def _kind(sequence: str, description: str) -> str:
    if sequence in _OTHER_KINDS:
        return _OTHER_KINDS[sequence]
    if sequence in _DERIVED:
        return "derived"
    text = " ".join(words(description))
    for entry in vocabulary("not_acquired"):
        if entry.pattern.search(text) and not (entry.unless and entry.unless.search(text)):
            return _NAMED_KINDS.get(entry.name, entry.name)
    return "acquired"
