"""Codex 12B (Chen et al., arXiv 2107.03374): sizes of table 1, training of section 3.2.

    python -m pretrain.describe --config codex_12b.py --devices 256
    python -m pretrain.launch --config codex_12b.py

Cost: 100 B tokens, 8.2e21 FLOPs. It is GPT-3 13B on Python source; its name leaves embeddings out.
What the paper leaves open and what you give: see codex_85m.py.
"""

from dataclasses import replace

from pretrain.configs.codex_85m import config as codex_85m
from pretrain.configs.gpt3_13b import config as gpt3_13b

published_non_embedding_parameters = 12e9

config = replace(
    codex_85m,
    model=replace(gpt3_13b.model, vocab=codex_85m.model.vocab),
    optim=replace(codex_85m.optim, peak_lr=gpt3_13b.optim.peak_lr),
    steps=47_684,
    batch=1024,
)
