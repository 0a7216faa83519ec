"""Gopher 1.4B (Rae et al., arXiv 2112.11446): sizes of table 1, training of section 3.2.

    python -m pretrain.describe --config gopher_1_4b.py --devices 64
    python -m pretrain.launch --config gopher_1_4b.py

Cost: 300 B tokens, 2.8e21 FLOPs. What the paper leaves open and what you give: see gopher_44m.py.
"""

from dataclasses import replace

from pretrain.configs.gopher_44m import config as gopher_44m

published_parameters = 1.4e9

config = replace(
    gopher_44m,
    model=replace(gopher_44m.model, layers=24, d_model=2_048, heads=16, head_dim=128, d_ff=8_192),
    optim=replace(gopher_44m.optim, peak_lr=2e-4),
)
