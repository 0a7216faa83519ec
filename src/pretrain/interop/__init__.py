"""Weights of other ecosystems, in and out."""
