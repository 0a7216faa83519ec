"""BLOOM 176B (Le Scao et al., arXiv 2211.05100): table 3, sections 3.2 and 3.5.

    python -m pretrain.describe --config bloom_176b.py --devices 512 --mesh.tensor 8 --mesh.seq 4
    python -m pretrain.launch --config bloom_176b.py --mesh.tensor 8 --mesh.seq 4

Cost: 366 B tokens, 4.0e23 FLOPs. What the paper leaves open and what you give: see bloom_560m.py;
here the batch rises by 16, and precision is bfloat16 as published.
The first batches have 192 sequences: more devices than share those split positions (`mesh.seq`).
"""

from dataclasses import replace

from pretrain.configs.bloom_560m import config as bloom_560m
from pretrain.configs.mt_nlg_530b import rising
from pretrain.schedules import Cosine

published_parameters = 176_247e6

config = replace(
    bloom_560m,
    model=replace(
        bloom_560m.model, layers=70, d_model=14_336, heads=112, head_dim=128, d_ff=57_344
    ),
    optim=replace(
        bloom_560m.optim, peak_lr=6e-5, schedule=Cosine(warmup=909, final=0.1, over=105_546)
    ),
    steps=95_151,
    batch=2048,
    ramp=rising(192, 16, 2048, sequences=9_765_625),
)
