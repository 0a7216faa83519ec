"""LLaMA 2 34B (Touvron et al., arXiv 2307.09288): sections 2.1 and 2.2.

    python -m pretrain.describe --config llama2_34b.py --devices 512 --mesh.tensor 8
    python -m pretrain.launch --config llama2_34b.py --mesh.tensor 8

Cost: 2.0 T tokens; 1,038,336 hours of one A100-80GB (table 2). This size was never released: its
layers and widths are those of Code Llama 34B, which began from it (arXiv 2308.12950, section 2.1),
in its released weights. What the paper leaves open and what you give: see llama2_7b.py.
"""

from dataclasses import replace

from pretrain.configs.llama2_7b import config as llama2_7b

published_parameters = 34e9

config = replace(
    llama2_7b,
    model=replace(llama2_7b.model, layers=48, d_model=8192, heads=64, kv_heads=8, d_ff=22_016),
    optim=replace(llama2_7b.optim, peak_lr=1.5e-4),
)
