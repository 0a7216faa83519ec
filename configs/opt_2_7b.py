"""OPT 2.7B (Zhang et al., arXiv 2205.01068): sizes of table 1, training of section 2.2.

    python -m pretrain.describe --config opt_2_7b.py --devices 128
    python -m pretrain.launch --config opt_2_7b.py

Cost: 300 B tokens, 5.4e21 FLOPs. What the paper leaves open and what you give: see opt_125m.py.
"""

from dataclasses import replace

from pretrain.configs.opt_125m import config as opt_125m
from pretrain.schedules import Linear

published_parameters = 2.7e9

config = replace(
    opt_125m,
    model=replace(opt_125m.model, layers=32, d_model=2_560, heads=32, head_dim=80, d_ff=10_240),
    optim=replace(opt_125m.optim, peak_lr=1.6e-4, schedule=Linear(warmup=357, final=0.1)),
    steps=286_102,
    batch=512,
)
