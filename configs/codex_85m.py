"""Codex 85M (Chen et al., arXiv 2107.03374): sizes of table 1, training of section 3.2.

    python -m pretrain.describe --config codex_85m.py --devices 64
    python -m pretrain.launch --config codex_85m.py

Cost: 100 B tokens, 9.8e19 FLOPs.
Codex is GPT-3 on Python source: this is GPT-3 125M, named for its parameters without embeddings, as
all Codex models are. It began from GPT-3's weights, which are not public; here it starts afresh,
which the paper found as good and slower. The paper's 12M, 25M and 42M are no sizes of GPT-3's and
are left out. The tokenizer has further tokens for runs of spaces, of a number not in the paper: 24,
as in the released p50k_base. Not in the paper, and here: the batch of GPT-3's model of that size
without a ramp, the cosine's end at a tenth. What GPT-3's paper leaves open: see gpt3_125m.py.
You give: code in data/ (159 GB of Python from GitHub, not public), and the tokenizer.json.
"""

from dataclasses import replace

from pretrain.configs.gpt3_125m import config as gpt3_125m
from pretrain.schedules import Cosine, Ramp

published_non_embedding_parameters = 85e6

config = replace(
    gpt3_125m,
    model=replace(gpt3_125m.model, vocab=50_281),
    optim=replace(gpt3_125m.optim, schedule=Cosine(warmup=175)),
    steps=190_735,
    ramp=Ramp(),
)
