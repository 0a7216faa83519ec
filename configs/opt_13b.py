"""OPT 13B (Zhang et al., arXiv 2205.01068): sizes of table 1, training of section 2.2.

    python -m pretrain.describe --config opt_13b.py --devices 256
    python -m pretrain.launch --config opt_13b.py

Cost: 300 B tokens, 2.5e22 FLOPs. What the paper leaves open and what you give: see opt_125m.py.
"""

from dataclasses import replace

from pretrain.configs.opt_125m import config as opt_125m
from pretrain.schedules import Linear

published_parameters = 13e9

config = replace(
    opt_125m,
    model=replace(opt_125m.model, layers=40, d_model=5_120, heads=40, head_dim=128, d_ff=20_480),
    optim=replace(opt_125m.optim, peak_lr=1e-4, schedule=Linear(warmup=89, final=0.1)),
    steps=71_525,
    batch=2048,
)
