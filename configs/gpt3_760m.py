"""GPT-3 760M, "Large" (Brown et al., arXiv 2005.14165): table 2.1, section 2.1 and appendix B.

    python -m pretrain.describe --config gpt3_760m.py --devices 16
    python -m pretrain.launch --config gpt3_760m.py

Cost: 300 B tokens, 1.6e21 FLOPs. What the paper leaves open and what you give: see gpt3_125m.py.
"""

from dataclasses import replace

from pretrain.configs.gpt3_125m import config as gpt3_125m

published_parameters = 760e6

config = replace(
    gpt3_125m,
    model=replace(gpt3_125m.model, layers=24, d_model=1536, heads=16, head_dim=96, d_ff=6144),
    optim=replace(gpt3_125m.optim, peak_lr=2.5e-4),
)
