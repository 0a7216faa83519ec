"""Scaling laws: read runs, fit, predict, plot. `python -m pretrain.scaling --help`."""
