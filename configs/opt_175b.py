"""OPT 175B (Zhang et al., arXiv 2205.01068): sizes of table 1, training of section 2.2.

    python -m pretrain.describe --config opt_175b.py --devices 1024 --mesh.tensor 8
    python -m pretrain.launch --config opt_175b.py --mesh.tensor 8

Cost: 300 B tokens, 3.2e23 FLOPs. What the paper leaves open and what you give: see opt_125m.py.
The warm-up is of 2000 steps. The paper lowered the rate by hand many times (figure 1) and the
clipping to 0.3 when training diverged: here the schedule and the 1.0 that it began with. Its sizes
multiply out to 174.6 B parameters.
"""

from dataclasses import replace

from pretrain.configs.opt_125m import config as opt_125m
from pretrain.schedules import Linear

published_parameters = 175e9

config = replace(
    opt_125m,
    model=replace(opt_125m.model, layers=96, d_model=12_288, heads=96, head_dim=128, d_ff=49_152),
    optim=replace(opt_125m.optim, peak_lr=1.2e-4, schedule=Linear(warmup=2000, final=0.1)),
    steps=143_051,
    batch=1024,
)
