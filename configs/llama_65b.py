"""LLaMA 65B (Touvron et al., arXiv 2302.13971): sizes of table 2, training of section 2.3.

    python -m pretrain.describe --config llama_65b.py --devices 2048 --mesh.tensor 8
    python -m pretrain.launch --config llama_65b.py --mesh.tensor 8

Cost: 1.4 T tokens; 1,022,362 hours of one A100-80GB (table 15). What the paper leaves open and what
you give: see llama_7b.py; the released weights of this size have 1e-5 in their norms.
"""

from dataclasses import replace

from pretrain.configs.llama_7b import config as llama_7b

published_parameters = 65.2e9

config = replace(
    llama_7b,
    model=replace(
        llama_7b.model,
        layers=80,
        d_model=8192,
        heads=64,
        kv_heads=64,
        d_ff=22_016,
        norm_eps=1e-5,
    ),
    optim=replace(llama_7b.optim, peak_lr=1.5e-4),
    steps=333_800,
)
