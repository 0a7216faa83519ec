"""Chinchilla 70B (Hoffmann et al., arXiv 2203.15556): sizes of table 4, training of section 4.1.

    python -m pretrain.describe --config chinchilla_70b.py --devices 2048 --mesh.tensor 8
    python -m pretrain.launch --config chinchilla_70b.py --mesh.tensor 8

Cost: 1.4 T tokens, 6.1e23 FLOPs.
The batch doubles from 1.5 to 3 M tokens "midway" (table 4), here after half of the tokens; they are
taken as 768 and 1536 sequences. As Gopher but for AdamW and a float32 copy of the weights; its
weight decay is not in the paper, nor are betas and epsilon: here they are GPT-3's. Warm-up and
clipping are Gopher's. What else the paper leaves open and what you give: see gopher_44m.py.
"""

from dataclasses import replace

from pretrain.configs.gopher_44m import config as gopher_44m
from pretrain.optim import AdamW
from pretrain.schedules import Cosine, Ramp

published_parameters = 70e9

config = replace(
    gopher_44m,
    model=replace(gopher_44m.model, layers=80, d_model=8192, heads=64, head_dim=128, d_ff=32_768),
    optim=AdamW(peak_lr=1e-4, schedule=Cosine(warmup=1500)),
    steps=667_572,
    batch=1536,
    ramp=Ramp(stages=((445_048, 768),)),
)
