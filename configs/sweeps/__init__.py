"""Sweeps, one file each: ladders that finish on a laptop, and those of papers."""
