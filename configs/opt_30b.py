"""OPT 30B (Zhang et al., arXiv 2205.01068): sizes of table 1, training of section 2.2.

    python -m pretrain.describe --config opt_30b.py --devices 512
    python -m pretrain.launch --config opt_30b.py

Cost: 300 B tokens, 5.6e22 FLOPs. What the paper leaves open and what you give: see opt_125m.py.
"""

from dataclasses import replace

from pretrain.configs.opt_125m import config as opt_125m
from pretrain.schedules import Linear

published_parameters = 30e9

config = replace(
    opt_125m,
    model=replace(opt_125m.model, layers=48, d_model=7_168, heads=56, head_dim=128, d_ff=28_672),
    optim=replace(opt_125m.optim, peak_lr=1e-4, schedule=Linear(warmup=89, final=0.1)),
    steps=71_525,
    batch=2048,
)
