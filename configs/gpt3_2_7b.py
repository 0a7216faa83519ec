"""GPT-3 2.7B (Brown et al., arXiv 2005.14165): table 2.1, section 2.1 and appendix B.

    python -m pretrain.describe --config gpt3_2_7b.py --devices 32 --mesh.tensor 2
    python -m pretrain.launch --config gpt3_2_7b.py --mesh.tensor 2

Cost: 300 B tokens, 5.4e21 FLOPs. What the paper leaves open and what you give: see gpt3_125m.py and
gpt3_1_3b.py.
"""

from dataclasses import replace

from pretrain.configs.gpt3_1_3b import config as gpt3_1_3b

published_parameters = 2.7e9

config = replace(
    gpt3_1_3b,
    model=replace(gpt3_1_3b.model, layers=32, d_model=2560, heads=32, head_dim=80, d_ff=10_240),
    optim=replace(gpt3_1_3b.optim, peak_lr=1.6e-4),
)
