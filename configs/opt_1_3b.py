"""OPT 1.3B (Zhang et al., arXiv 2205.01068): sizes of table 1, training of section 2.2.

    python -m pretrain.describe --config opt_1_3b.py --devices 64
    python -m pretrain.launch --config opt_1_3b.py

Cost: 300 B tokens, 2.7e21 FLOPs. What the paper leaves open and what you give: see opt_125m.py.
"""

from dataclasses import replace

from pretrain.configs.opt_125m import config as opt_125m
from pretrain.schedules import Linear

published_parameters = 1.3e9

config = replace(
    opt_125m,
    model=replace(opt_125m.model, layers=24, d_model=2_048, heads=32, head_dim=64, d_ff=8_192),
    optim=replace(opt_125m.optim, peak_lr=2e-4, schedule=Linear(warmup=357, final=0.1)),
    steps=286_102,
    batch=512,
)
