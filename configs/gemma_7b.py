"""Gemma 7B (Gemma Team, arXiv 2403.08295): sizes of table 1, context of section 2, tokens of 4.1.

    python -m pretrain.describe --config gemma_7b.py --devices 128
    python -m pretrain.launch --config gemma_7b.py

Cost: 6.0 T tokens, 3.8e23 FLOPs. What the paper leaves open and what you give: see gemma_2b.py. The
parameters are table 2's: 786,825,216 of embeddings, 7,751,248,896 others.
"""

from dataclasses import replace

from pretrain.configs.gemma_2b import config as gemma_2b

published_parameters = 8_538_074_112

config = replace(
    gemma_2b,
    model=replace(gemma_2b.model, layers=28, d_model=3072, heads=16, kv_heads=16, d_ff=24_576),
    steps=1_430_511,
)
