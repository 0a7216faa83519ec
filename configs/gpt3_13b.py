"""GPT-3 13B (Brown et al., arXiv 2005.14165): table 2.1, section 2.1 and appendix B.

    python -m pretrain.describe --config gpt3_13b.py --devices 128 --mesh.tensor 8
    python -m pretrain.launch --config gpt3_13b.py --mesh.tensor 8

Cost: 300 B tokens, 2.5e22 FLOPs. What the paper leaves open and what you give: see gpt3_125m.py and
gpt3_6_7b.py.
The table's width of 5140 is not its 40 heads of 128 features: here it is 5120, as in OPT 13B, and
the parameters are 12.9 B; with 5140 they would be 12.9 B too. The table prints 13.0 B.
"""

from dataclasses import replace

from pretrain.configs.gpt3_6_7b import config as gpt3_6_7b

published_parameters = 13e9

config = replace(
    gpt3_6_7b,
    model=replace(gpt3_6_7b.model, layers=40, d_model=5120, heads=40, d_ff=20_480),
    optim=replace(gpt3_6_7b.optim, peak_lr=1e-4),
)
