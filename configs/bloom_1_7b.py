"""BLOOM 1.7B (Le Scao et al., arXiv 2211.05100): table 3, sections 3.2 and 3.5.

    python -m pretrain.describe --config bloom_1_7b.py --devices 16
    python -m pretrain.launch --config bloom_1_7b.py

Cost: 341 B tokens, 3.9e21 FLOPs. What the paper leaves open and what you give: see bloom_560m.py;
here the batch rises by 16.
"""

from dataclasses import replace

from pretrain.configs.bloom_560m import config as bloom_560m
from pretrain.configs.mt_nlg_530b import rising
from pretrain.schedules import Cosine

published_parameters = 1722e6

config = replace(
    bloom_560m,
    model=replace(bloom_560m.model, layers=24, d_model=2048, heads=16, head_dim=128, d_ff=8192),
    optim=replace(
        bloom_560m.optim, peak_lr=2e-4, schedule=Cosine(warmup=954, final=1e-5 / 2e-4, over=402_294)
    ),
    steps=336_872,
    batch=512,
    ramp=rising(192, 16, 512, sequences=9_765_625),
)
