"""GPT-3 1.3B, "XL" (Brown et al., arXiv 2005.14165): table 2.1, section 2.1 and appendix B.

    python -m pretrain.describe --config gpt3_1_3b.py --devices 16
    python -m pretrain.launch --config gpt3_1_3b.py

Cost: 300 B tokens, 2.7e21 FLOPs. What the paper leaves open and what you give: see gpt3_125m.py;
the batch of 1 M tokens is taken as 512 sequences.
The table's 24 heads of 128 features are not its width of 2048: here there are 16, the only one of
the three numbers whose change leaves the table's 1.3 B parameters.
"""

from dataclasses import replace

from pretrain.configs.gpt3_125m import config as gpt3_125m
from pretrain.schedules import Cosine, Ramp

published_parameters = 1.3e9

config = replace(
    gpt3_125m,
    model=replace(gpt3_125m.model, layers=24, d_model=2048, heads=16, head_dim=128, d_ff=8192),
    optim=replace(gpt3_125m.optim, peak_lr=2e-4, schedule=Cosine(warmup=7691, over=263_830)),
    steps=301_977,
    batch=512,
    ramp=Ramp(stages=((3938, 16), (7876, 32), (11_814, 64), (15_752, 128), (19_690, 256))),
)
