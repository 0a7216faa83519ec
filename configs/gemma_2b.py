"""Gemma 2B (Gemma Team, arXiv 2403.08295): sizes of table 1, context of section 2, tokens of 4.1.

    python -m pretrain.describe --config gemma_2b.py --devices 32
    python -m pretrain.launch --config gemma_2b.py

Cost: 3.0 T tokens, 5.6e22 FLOPs.
Only context and tokens of the training are published. The rest is here as for LLaMA 2 7B (see
llama2_7b.py): optimizer, rate, batch of 4 M tokens; weights start as a normal of 0.02. Table 1's
feed-forward of 32,768 is both halves of the gate. The parameters are table 2's: 524,550,144 of
embeddings and 1,981,884,416 others. Its embeddings have 256,128 rows, the released ones 256,000.
You give: text in data/, and Gemma's SentencePiece model of 256,000 pieces.
"""

from dataclasses import replace

from pretrain.configs.llama2_7b import config as llama2_7b
from pretrain.models.gemma import Gemma

published_parameters = 2_506_434_560

config = replace(
    llama2_7b,
    model=Gemma(
        vocab=256_128,
        layers=18,
        d_model=2048,
        heads=8,
        kv_heads=1,
        head_dim=256,
        d_ff=16_384,
    ),
    steps=715_256,
    batch=512,
    seq_len=8192,
)
