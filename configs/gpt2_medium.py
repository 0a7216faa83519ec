"""GPT-2 medium (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019): table 2.

    python -m pretrain.describe --config gpt2_medium.py --devices 8
    python -m pretrain.launch --config gpt2_medium.py

Cost: 52 B tokens, 1.3e20 FLOPs. What the paper leaves open and what you give: see gpt2.py; 3e-4 is
the peak of GPT-3's model of that size.
The paper's 345 M parameters are a miscount, corrected when the weights were released.
"""

from dataclasses import replace

from pretrain.configs.gpt2 import config as gpt2
from pretrain.models.stack import Recompute

published_parameters = 354.8e6

config = replace(
    gpt2,
    model=replace(gpt2.model, layers=24, d_model=1024, heads=16, d_ff=4096),
    optim=replace(gpt2.optim, peak_lr=3e-4),
    compute=replace(gpt2.compute, remat=Recompute()),
)
