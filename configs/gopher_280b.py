"""Gopher 280B (Rae et al., arXiv 2112.11446): sizes of table 1, training of section 3.2.

    python -m pretrain.describe --config gopher_280b.py --devices 4096 --mesh.tensor 8
    python -m pretrain.launch --config gopher_280b.py --mesh.tensor 8

Cost: 300 B tokens, 5.1e23 FLOPs. What the paper leaves open and what you give: see gopher_44m.py.
The batch doubles from 3 to 6 M tokens "midway" (arXiv 2203.15556, table 4), here after half of the
tokens.
"""

from dataclasses import replace

from pretrain.configs.gopher_44m import config as gopher_44m
from pretrain.schedules import Ramp

published_parameters = 280e9

config = replace(
    gopher_44m,
    model=replace(
        gopher_44m.model, layers=80, d_model=16_384, heads=128, head_dim=128, d_ff=65_536
    ),
    optim=replace(gopher_44m.optim, peak_lr=4e-5, clip_norm=0.25),
    steps=71_526,
    batch=3072,
    ramp=Ramp(stages=((47_684, 1536),)),
)
