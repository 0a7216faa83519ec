"""Loss by tokens for one model, from one trunk: five lengths for little more than the longest costs.

python -m pretrain.sweep --config tokens_tiny.py
"""

from pretrain.configs.sweeps.isoflop_tiny import sized
from pretrain.sweeps.ladder import token_ladder

sweep = token_ladder(
    "d64",
    sized(layers=2, d_model=64),
    (0.5e6, 1e6, 2e6, 4e6, 8e6),
    decay=0.2,
    every=50,
)
