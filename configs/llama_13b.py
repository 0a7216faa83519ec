"""LLaMA 13B (Touvron et al., arXiv 2302.13971): sizes of table 2, training of section 2.3.

    python -m pretrain.describe --config llama_13b.py --devices 128
    python -m pretrain.launch --config llama_13b.py

Cost: 1.0 T tokens; 135,168 hours of one A100-80GB (table 15). What the paper leaves open and what
you give: see llama_7b.py.
"""

from dataclasses import replace

from pretrain.configs.llama_7b import config as llama_7b

published_parameters = 13.0e9

config = replace(
    llama_7b,
    model=replace(llama_7b.model, layers=40, d_model=5120, heads=40, kv_heads=40, d_ff=13_824),
)
