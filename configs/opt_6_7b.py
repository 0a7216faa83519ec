"""OPT 6.7B (Zhang et al., arXiv 2205.01068): sizes of table 1, training of section 2.2.

    python -m pretrain.describe --config opt_6_7b.py --devices 256
    python -m pretrain.launch --config opt_6_7b.py

Cost: 300 B tokens, 1.3e22 FLOPs. What the paper leaves open and what you give: see opt_125m.py.
"""

from dataclasses import replace

from pretrain.configs.opt_125m import config as opt_125m
from pretrain.schedules import Linear

published_parameters = 6.7e9

config = replace(
    opt_125m,
    model=replace(opt_125m.model, layers=32, d_model=4_096, heads=32, head_dim=128, d_ff=16_384),
    optim=replace(opt_125m.optim, peak_lr=1.2e-4, schedule=Linear(warmup=178, final=0.1)),
    steps=143_051,
    batch=1024,
)
