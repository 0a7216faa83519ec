"""GPT-3 6.7B (Brown et al., arXiv 2005.14165): table 2.1, section 2.1 and appendix B.

    python -m pretrain.describe --config gpt3_6_7b.py --devices 64 --mesh.tensor 4
    python -m pretrain.launch --config gpt3_6_7b.py --mesh.tensor 4

Cost: 300 B tokens, 1.3e22 FLOPs. What the paper leaves open and what you give: see gpt3_125m.py;
the batch of 2 M tokens is taken as 1024 sequences.
"""

from dataclasses import replace

from pretrain.configs.gpt3_125m import config as gpt3_125m
from pretrain.schedules import Cosine, Ramp

published_parameters = 6.7e9

config = replace(
    gpt3_125m,
    model=replace(gpt3_125m.model, layers=32, d_model=4096, heads=32, head_dim=128, d_ff=16_384),
    optim=replace(gpt3_125m.optim, peak_lr=1.2e-4, schedule=Cosine(warmup=5283, over=133_696)),
    steps=152_770,
    batch=1024,
    ramp=Ramp(stages=((1938, 16), (3875, 32), (5813, 64), (7751, 128), (9688, 256), (11_626, 512))),
)
