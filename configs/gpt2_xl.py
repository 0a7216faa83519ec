"""GPT-2 XL (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019): table 2.

    python -m pretrain.describe --config gpt2_xl.py --devices 8
    python -m pretrain.launch --config gpt2_xl.py

Cost: 52 B tokens, 5.4e20 FLOPs. What the paper leaves open and what you give: see gpt2.py; 2e-4 is
the peak of GPT-3's model of that size.
The paper's 1542 M parameters are a miscount, corrected when the weights were released.
"""

from dataclasses import replace

from pretrain.configs.gpt2 import config as gpt2
from pretrain.models.stack import Recompute

published_parameters = 1557.6e6

config = replace(
    gpt2,
    model=replace(gpt2.model, layers=48, d_model=1600, heads=25, d_ff=6400),
    optim=replace(gpt2.optim, peak_lr=2e-4),
    compute=replace(gpt2.compute, remat=Recompute()),
)
