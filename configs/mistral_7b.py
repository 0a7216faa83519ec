"""Mistral 7B (Jiang et al., arXiv 2310.06825): sizes of table 1.

    python -m pretrain.describe --config mistral_7b.py --devices 64
    python -m pretrain.launch --config mistral_7b.py

Cost: 2.0 T tokens, 1.1e23 FLOPs.
Nothing of the training is published. All of it is here as for LLaMA 2 7B (see llama2_7b.py), tokens
among it, on the paper's context of 8192. The parameters are those of the announcement, 7.3 B. A
token sees 4096 positions, itself and the 4095 before it.
You give: text in data/, and Mistral's SentencePiece model of 32,000 pieces.
"""

from dataclasses import replace

from pretrain.configs.llama2_7b import config as llama2_7b
from pretrain.models.mistral import Mistral

published_parameters = 7.3e9

config = replace(
    llama2_7b,
    model=Mistral(
        vocab=32_000,
        layers=32,
        d_model=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        d_ff=14_336,
        window=4096,
    ),
    batch=512,
    seq_len=8192,
)
