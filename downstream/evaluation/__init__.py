"""Weights x tasks x labels x draws: the cells, their statistics and the report."""
