"""Codex 2.5B (Chen et al., arXiv 2107.03374): sizes of table 1, training of section 3.2.

    python -m pretrain.describe --config codex_2_5b.py --devices 128
    python -m pretrain.launch --config codex_2_5b.py

Cost: 100 B tokens, 1.8e21 FLOPs. It is GPT-3 2.7B on Python source; its name leaves embeddings out.
What the paper leaves open and what you give: see codex_85m.py.
"""

from dataclasses import replace

from pretrain.configs.codex_85m import config as codex_85m
from pretrain.configs.gpt3_2_7b import config as gpt3_2_7b

published_non_embedding_parameters = 2.5e9

config = replace(
    codex_85m,
    model=replace(gpt3_2_7b.model, vocab=codex_85m.model.vocab),
    optim=replace(codex_85m.optim, peak_lr=gpt3_2_7b.optim.peak_lr),
    steps=95_367,
    batch=512,
)
