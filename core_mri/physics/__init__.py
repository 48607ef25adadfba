"""Physics of MRI: synthetic anatomy, signals and raw data."""

from __future__ import annotations
