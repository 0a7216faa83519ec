"""Learning rate against batch size at a fixed number of tokens, on two CPU cores.

    python -m pretrain.sweep --config lr_batch_tiny.py

Twelve runs of 140 thousand parameters, about ten minutes where nothing else runs.
"""

from pretrain.configs.sweeps.isoflop_tiny import sized
from pretrain.sweeps.ladder import for_tokens, grid

sweep = grid(
    "d64",
    for_tokens(sized(layers=2, d_model=64), 1e6),
    {"optim.peak_lr": (1e-3, 2e-3, 4e-3, 8e-3), "batch": (4, 8, 16)},
)
