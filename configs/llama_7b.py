"""LLaMA 7B (Touvron et al., arXiv 2302.13971): sizes of table 2, training of section 2.3.

    python -m pretrain.describe --config llama_7b.py --devices 64
    python -m pretrain.launch --config llama_7b.py

Cost: 1.0 T tokens; 82,432 hours of one A100-80GB (table 15).
The paper's batch of 4 M tokens is taken as 2048 sequences; the steps follow from the tokens. Not in
the paper: the context (2048, says LLaMA 2, arXiv 2307.09288, table 1); the epsilon of the norms and
the feed-forward's exact width (from the released weights); Adam's epsilon and the weights' start
(1e-8, a normal of 0.02 here); precision and dropout (bfloat16, none here). The mesh is yours.
You give: text in data/, and the SentencePiece model of 32,000 pieces (the mixture is of table 1).
"""

from pretrain.data import Data, Files, SentencePiece
from pretrain.kernels.blockwise import Blockwise
from pretrain.models.llama import LLaMA
from pretrain.models.model import Compute
from pretrain.models.stack import Recompute
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Cosine

published_parameters = 6.7e9

config = Run(
    model=LLaMA(
        vocab=32_000,
        layers=32,
        d_model=4096,
        heads=32,
        kv_heads=32,
        head_dim=128,
        d_ff=11_008,
        norm_eps=1e-6,
    ),
    data=Data(
        source=Files(glob=("data/*.jsonl.zst",)),
        tokenizer=SentencePiece(path="tokenizer.model"),
    ),
    optim=AdamW(peak_lr=3e-4, schedule=Cosine(warmup=2000)),
    steps=238_400,
    batch=2048,
    seq_len=2048,
    compute=Compute(remat=Recompute(), attention=Blockwise()),
)
