"""OPT 66B (Zhang et al., arXiv 2205.01068): sizes of table 1, training of section 2.2.

    python -m pretrain.describe --config opt_66b.py --devices 1024 --mesh.tensor 8
    python -m pretrain.launch --config opt_66b.py --mesh.tensor 8

Cost: 300 B tokens, 1.2e23 FLOPs. What the paper leaves open and what you give: see opt_125m.py.
"""

from dataclasses import replace

from pretrain.configs.opt_125m import config as opt_125m
from pretrain.schedules import Linear

published_parameters = 66e9

config = replace(
    opt_125m,
    model=replace(opt_125m.model, layers=64, d_model=9_216, heads=72, head_dim=128, d_ff=36_864),
    optim=replace(opt_125m.optim, peak_lr=0.8e-4, schedule=Linear(warmup=178, final=0.1)),
    steps=143_051,
    batch=1024,
)
