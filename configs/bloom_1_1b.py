"""BLOOM 1.1B (Le Scao et al., arXiv 2211.05100): table 3, sections 3.2 and 3.5.

    python -m pretrain.describe --config bloom_1_1b.py --devices 16
    python -m pretrain.launch --config bloom_1_1b.py

Cost: 341 B tokens, 2.5e21 FLOPs. What the paper leaves open and what you give: see bloom_560m.py;
here the batch rises by 16.
"""

from dataclasses import replace

from pretrain.configs.bloom_560m import config as bloom_560m
from pretrain.configs.mt_nlg_530b import rising
from pretrain.schedules import Cosine

published_parameters = 1065e6

config = replace(
    bloom_560m,
    model=replace(bloom_560m.model, layers=24, d_model=1536, heads=16, head_dim=96, d_ff=6144),
    optim=replace(
        bloom_560m.optim,
        peak_lr=2.5e-4,
        schedule=Cosine(warmup=954, final=1e-5 / 2.5e-4, over=788_628),
    ),
    steps=657_784,
    batch=256,
    ramp=rising(192, 16, 256, sequences=9_765_625),
)
