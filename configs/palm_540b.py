"""PaLM 540B (Chowdhery et al., arXiv 2204.02311): sizes of table 1, training of section 5.

    python -m pretrain.describe --config palm_540b.py
    python -m pretrain.launch --config palm_540b.py

For the paper's two TPU v4 pods of 3072 chips (section 4): in each, batch and parameters are split
256 ways, heads, feed-forward and vocabulary 12 ways. 2048 positions do not divide by 12, so the
residual stream is split along its features; nor do 256,000 rows, so the table has 256,128. What is
kept for the backward pass is what fits beside it there; the planner says 60 % of peak.

Cost: 776 B tokens (the paper says 780 B), 2.5e24 FLOPs, 38 days at the paper's 46.2 % of peak.
540.35 B is the count without the 2.2 M norm gains, or rounded down: with them it is 540.356 B.
What the paper leaves open and what you give: see palm_8b.py; the batch ramp is the paper's.
"""

from dataclasses import replace

from pretrain.configs.palm_8b import config as palm_8b
from pretrain.models.stack import Recompute
from pretrain.schedules import Ramp
from pretrain.sharding import Mesh, Rules

published_parameters = 540.35e9

config = replace(
    palm_8b,
    model=replace(
        palm_8b.model, layers=118, d_model=18_432, heads=48, d_ff=73_728, vocab_multiple=384
    ),
    steps=255_000,
    batch=2048,
    ramp=Ramp(stages=((50_000, 512), (115_000, 1024))),
    mesh=Mesh(replica=2, fsdp=256, tensor=12),
    rules=Rules(residual=("tensor",)),
    compute=replace(
        palm_8b.compute, remat=Recompute(save=("query", "key", "value", "attention", "mlp_gate"))
    ),
)
