"""LLaMA 33B (Touvron et al., arXiv 2302.13971): sizes of table 2, training of section 2.3.

    python -m pretrain.describe --config llama_33b.py --devices 512
    python -m pretrain.launch --config llama_33b.py

Cost: 1.4 T tokens; 530,432 hours of one A100-80GB (table 15). What the paper leaves open and what
you give: see llama_7b.py. The released weights call themselves 30B.
"""

from dataclasses import replace

from pretrain.configs.llama_7b import config as llama_7b

published_parameters = 32.5e9

config = replace(
    llama_7b,
    model=replace(llama_7b.model, layers=60, d_model=6656, heads=52, kv_heads=52, d_ff=17_920),
    optim=replace(llama_7b.optim, peak_lr=1.5e-4),
    steps=333_800,
)
