"""GPT-2 large (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019): table 2.

    python -m pretrain.describe --config gpt2_large.py --devices 8
    python -m pretrain.launch --config gpt2_large.py

Cost: 52 B tokens, 2.7e20 FLOPs. What the paper leaves open and what you give: see gpt2.py; 2.5e-4
is the peak of GPT-3's model of that size.
The paper's 762 M parameters are a miscount, corrected when the weights were released.
"""

from dataclasses import replace

from pretrain.configs.gpt2 import config as gpt2
from pretrain.models.stack import Recompute

published_parameters = 774.0e6

config = replace(
    gpt2,
    model=replace(gpt2.model, layers=36, d_model=1280, heads=20, d_ff=5120),
    optim=replace(gpt2.optim, peak_lr=2.5e-4),
    compute=replace(gpt2.compute, remat=Recompute()),
)
