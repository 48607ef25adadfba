"""Slices from raw data: sources, files in and out, backends, scores."""
