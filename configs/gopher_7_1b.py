"""Gopher 7.1B (Rae et al., arXiv 2112.11446): sizes of table 1, training of section 3.2.

    python -m pretrain.describe --config gopher_7_1b.py --devices 256
    python -m pretrain.launch --config gopher_7_1b.py

Cost: 300 B tokens, 1.4e22 FLOPs. What the paper leaves open and what you give: see gopher_44m.py.
"""

from dataclasses import replace

from pretrain.configs.gopher_44m import config as gopher_44m

published_parameters = 7.1e9

config = replace(
    gopher_44m,
    model=replace(gopher_44m.model, layers=32, d_model=4_096, heads=32, head_dim=128, d_ff=16_384),
    optim=replace(gopher_44m.optim, peak_lr=1.2e-4, clip_norm=0.25),
    steps=143_051,
    batch=1024,
)
