"""Leaderboards: tasks with hidden references, scored here, ranked with ties."""
