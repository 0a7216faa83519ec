"""GPT-3 350M, "Medium" (Brown et al., arXiv 2005.14165): table 2.1, section 2.1 and appendix B.

    python -m pretrain.describe --config gpt3_350m.py --devices 16
    python -m pretrain.launch --config gpt3_350m.py

Cost: 300 B tokens, 8.2e20 FLOPs. What the paper leaves open and what you give: see gpt3_125m.py.
"""

from dataclasses import replace

from pretrain.configs.gpt3_125m import config as gpt3_125m

published_parameters = 0.35e9

config = replace(
    gpt3_125m,
    model=replace(gpt3_125m.model, layers=24, d_model=1024, heads=16, d_ff=4096),
    optim=replace(gpt3_125m.optim, peak_lr=3e-4),
)
