"""A pretraining corpus planned from a public index: which series, under which licence, for what."""
