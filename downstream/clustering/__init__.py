"""What frozen features tell apart without labels: k-means of patch features, scored as masks."""
