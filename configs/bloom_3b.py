"""BLOOM 3B (Le Scao et al., arXiv 2211.05100): table 3, sections 3.2 and 3.5.

    python -m pretrain.describe --config bloom_3b.py --devices 32
    python -m pretrain.launch --config bloom_3b.py

Cost: 341 B tokens, 6.8e21 FLOPs. What the paper leaves open and what you give: see bloom_560m.py;
here the batch rises by 32.
"""

from dataclasses import replace

from pretrain.configs.bloom_560m import config as bloom_560m
from pretrain.configs.mt_nlg_530b import rising
from pretrain.schedules import Cosine

published_parameters = 3003e6

config = replace(
    bloom_560m,
    model=replace(bloom_560m.model, layers=30, d_model=2560, heads=32, head_dim=80, d_ff=10_240),
    optim=replace(
        bloom_560m.optim,
        peak_lr=1.6e-4,
        schedule=Cosine(warmup=954, final=1e-5 / 1.6e-4, over=403_135),
    ),
    steps=337_712,
    batch=512,
    ramp=rising(192, 32, 512, sequences=9_765_625),
)
