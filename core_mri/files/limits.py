"""How far a stranger's file is believed when it says how large it unpacks."""

from __future__ import annotations

MAX_RATIO = 200
"""Bytes of values for each stored byte that are believed ..."""
MAX_UNBELIEVED_BYTES = 2**28
"""... and the size up to which any ratio is: a mask of zeros packs a thousand to one."""
