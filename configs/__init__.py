"""Runs, one file each: the published models, and the tiny ones that train on a laptop's CPU."""
