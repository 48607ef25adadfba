"""Free text to what it says about the scan: words of an allow-list stay, all others go."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from data_registry.vocabulary import is_technical, words


def clean_text(text: str, forbidden: Collection[str] = ()) -> str:
    """Keep the words of `text` that stand in the vocabularies and not in `forbidden`.

    Plain numbers are never kept: they may be a record number, a date or an age. A text all of whose
    words may stay is returned unchanged, so ``t1_mprage_sag`` keeps its spelling.

    Not covered: a person's name that is also a technical word ("Foot") and is not in `forbidden`.

    Args:
        text: One description; several values are separated by backslashes, as in DICOM.
        forbidden: Words of this patient's own name and numbers, from :func:`name_words`.
    """
    return "\\".join(_clean(part, forbidden) for part in text.split("\\"))


def name_words(texts: Iterable[str]) -> frozenset[str]:
    """Words of names and numbers that must not stay in any description; single letters aside."""
    return frozenset(word for text in texts for word in words(text) if len(word) > 1)


def _clean(text: str, forbidden: Collection[str]) -> str:
    found = words(text)
    kept = [word for word in found if word not in forbidden and is_technical(word)]
    return text if text.isascii() and text.isprintable() and kept == found else " ".join(kept)
