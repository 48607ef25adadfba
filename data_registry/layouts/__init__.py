"""Labelled data sets in public layouts: their lists, read strictly, to sources of a registry."""
