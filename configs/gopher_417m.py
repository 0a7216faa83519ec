"""Gopher 417M (Rae et al., arXiv 2112.11446): sizes of table 1, training of section 3.2.

    python -m pretrain.describe --config gopher_417m.py --devices 16
    python -m pretrain.launch --config gopher_417m.py

Cost: 300 B tokens, 8.9e20 FLOPs. What the paper leaves open and what you give: see gopher_44m.py.
"""

from dataclasses import replace

from pretrain.configs.gopher_44m import config as gopher_44m

published_parameters = 417e6

config = replace(
    gopher_44m,
    model=replace(gopher_44m.model, layers=12, d_model=1_536, heads=12, head_dim=128, d_ff=6_144),
    optim=replace(gopher_44m.optim, peak_lr=2e-4),
)
