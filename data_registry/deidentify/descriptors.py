"""Free text to what it says about the scan: words of an allow-list stay, all others go."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from data_registry.vocabulary import is_technical, words


def clean_text(text: str, forbidden: Collection[str] = ()) -> str:
    """Keep the words of `text` that stand in the vocabularies and not in `forbidden`.

    Plain numbers go, but for b-values and matrix sizes: they may be a record number, a date
    or an age. A text all of whose
    words may stay is returned unchanged, so ``t1_mprage_sag`` keeps its spelling.

    Not covered: a person's name that is also a technical word ("Foot") and is not in `forbidden`.

    Args:
        text: One description; several values are separated by backslashes, as in DICOM.
        forbidden: Words of this patient's own name and numbers, from :func:`name_words`.
    """
    return "\\".join(split_text(part, forbidden)[0] for part in text.split("\\"))


def split_text(text: str, forbidden: Collection[str] = ()) -> tuple[str, list[str]]:
    """One value as :func:`clean_text` leaves it, and the words that went."""
    found = words(text)
    gone = [word for word in found if word in forbidden or not is_technical(word)]
    if not gone and text.isascii() and text.isprintable():
        return text, gone
    return " ".join(word for word in found if word not in gone), gone


def name_words(texts: Iterable[str]) -> frozenset[str]:
    """Words of names and numbers that must not stay in any description; single letters aside."""
    return frozenset(word for text in texts for word in words(text) if len(word) > 1)
