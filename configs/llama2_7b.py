"""LLaMA 2 7B (Touvron et al., arXiv 2307.09288): sections 2.1 and 2.2.

    python -m pretrain.describe --config llama2_7b.py --devices 64
    python -m pretrain.launch --config llama2_7b.py

Cost: 2.0 T tokens; 184,320 hours of one A100-80GB (table 2).
The paper's batch of 4 M tokens is taken as 1024 sequences; the steps follow from 2 T tokens. Not in
the paper, and here: weights start as a normal of 0.02; the mesh is yours.
You give: text in data/, and the SentencePiece model of 32,000 pieces (Meta's data is not public).
"""

from pretrain.data import Data, Files, SentencePiece
from pretrain.kernels.fused import Fused
from pretrain.models.llama import LLaMA
from pretrain.models.model import Compute
from pretrain.models.stack import Recompute
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Cosine

published_parameters = 6.74e9

config = Run(
    model=LLaMA(
        vocab=32_000,
        layers=32,
        d_model=4096,
        heads=32,
        kv_heads=32,
        head_dim=128,
        d_ff=11_008,
    ),
    data=Data(
        source=Files(glob=("data/*.jsonl.zst",)),
        tokenizer=SentencePiece(path="tokenizer.model"),
    ),
    optim=AdamW(peak_lr=3e-4, eps=1e-5, schedule=Cosine(warmup=2000)),
    steps=477_000,
    batch=1024,
    seq_len=4096,
    compute=Compute(remat=Recompute(), attention=Fused()),
)
