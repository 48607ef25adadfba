"""Training of reconstruction networks, with and without fully sampled references."""
