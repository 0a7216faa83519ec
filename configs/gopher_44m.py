"""Gopher 44M (Rae et al., arXiv 2112.11446): sizes of table 1, training of section 3.2.

    python -m pretrain.describe --config gopher_44m.py --devices 8
    python -m pretrain.launch --config gopher_44m.py

Cost: 300 B tokens, 1.1e20 FLOPs.
Table 1's batch of 0.25 M tokens is taken as 128 sequences; the steps follow from 300 B tokens. The
paper warms up from a rate of 1e-7, here from 1 / 1500 of the peak. Not in the paper: Adam's betas
and epsilon (here its own paper's, and no decay), the epsilon of the norms, the weights' start,
dropout (none here). Sizes below 7.1B have float32 parameters and bfloat16 activations, as here;
7.1B and 280B kept parameters in bfloat16 with stochastic rounding, which here are float32 too.
You give: text in data/ (MassiveText is not public), and a SentencePiece model of 32,000 pieces.
"""

from pretrain.data import Data, Files, SentencePiece
from pretrain.models.gopher import Gopher
from pretrain.models.model import Compute
from pretrain.models.stack import Recompute
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Cosine

published_parameters = 44e6

config = Run(
    model=Gopher(vocab=32_000, layers=8, d_model=512, heads=16, head_dim=32, d_ff=2048),
    data=Data(
        source=Files(glob=("data/*.jsonl.zst",)),
        tokenizer=SentencePiece(path="tokenizer.model"),
    ),
    optim=AdamW(peak_lr=6e-4, schedule=Cosine(warmup=1500), b2=0.999, weight_decay=0.0),
    steps=1_144_409,
    batch=128,
    seq_len=2048,
    compute=Compute(remat=Recompute()),
)
