"""Codex 679M (Chen et al., arXiv 2107.03374): sizes of table 1, training of section 3.2.

    python -m pretrain.describe --config codex_679m.py --devices 64
    python -m pretrain.launch --config codex_679m.py

Cost: 100 B tokens, 5.5e20 FLOPs. It is GPT-3 760M on Python source; its name leaves embeddings out.
What the paper leaves open and what you give: see codex_85m.py.
"""

from dataclasses import replace

from pretrain.configs.codex_85m import config as codex_85m
from pretrain.configs.gpt3_760m import config as gpt3_760m

published_non_embedding_parameters = 679e6

config = replace(
    codex_85m,
    model=replace(gpt3_760m.model, vocab=codex_85m.model.vocab),
    optim=replace(codex_85m.optim, peak_lr=gpt3_760m.optim.peak_lr),
)
