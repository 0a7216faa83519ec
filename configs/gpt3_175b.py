"""GPT-3 175B (Brown et al., arXiv 2005.14165): table 2.1, section 2.1 and appendix B.

    python -m pretrain.describe --config gpt3_175b.py --devices 1024 --mesh.tensor 8 --mesh.seq 8
    python -m pretrain.launch --config gpt3_175b.py --mesh.tensor 8 --mesh.seq 8

Cost: 300 B tokens, 3.2e23 FLOPs. What the paper leaves open and what you give: see gpt3_125m.py;
the batch of 3.2 M tokens is taken as 1536 sequences.
The table prints 175.0 B parameters; its sizes multiply out to 174.6 B. The first batches have 16
sequences: more devices than those hold split positions (`mesh.seq`).
"""

from dataclasses import replace

from pretrain.configs.gpt3_125m import config as gpt3_125m
from pretrain.schedules import Cosine, Ramp

published_parameters = 175e9

config = replace(
    gpt3_125m,
    model=replace(gpt3_125m.model, layers=96, d_model=12_288, heads=96, head_dim=128, d_ff=49_152),
    optim=replace(gpt3_125m.optim, peak_lr=0.6e-4, schedule=Cosine(warmup=7650, over=103_894)),
    steps=116_610,
    batch=1536,
    ramp=Ramp(
        stages=(
            (3855, 16),
            (7710, 32),
            (11_565, 64),
            (15_420, 128),
            (19_275, 256),
            (23_130, 512),
            (25_057, 1024),
        )
    ),
)
