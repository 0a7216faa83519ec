"""LLaMA 2 13B (Touvron et al., arXiv 2307.09288): sections 2.1 and 2.2.

    python -m pretrain.describe --config llama2_13b.py --devices 128
    python -m pretrain.launch --config llama2_13b.py

Cost: 2.0 T tokens; 368,640 hours of one A100-80GB (table 2). What the paper leaves open and what
you give: see llama2_7b.py.
"""

from dataclasses import replace

from pretrain.configs.llama2_7b import config as llama2_7b

published_parameters = 13.02e9

config = replace(
    llama2_7b,
    model=replace(llama2_7b.model, layers=40, d_model=5120, heads=40, kv_heads=40, d_ff=13_824),
)
