"""PaLM 8B (Chowdhery et al., arXiv 2204.02311): sizes of table 1, training of section 5.

    python -m pretrain.describe --config palm_8b.py --devices 64
    python -m pretrain.launch --config palm_8b.py

Cost: 780 B tokens, 4.3e22 FLOPs.
The batch doubles from 256 to 512 sequences (table 1) at a step that the paper does not give: here
at 50,000, the first doubling of PaLM 540B. The number of steps follows from 780 B tokens. Not in
the paper, and here: T5X's momentum 0.9 of Adafactor, RoPE's base of 10,000; the mesh is yours.
You give: text in data/, and a SentencePiece model of 256,000 pieces (PaLM's own are not public).
"""

from pretrain.data import Data, Files, SentencePiece
from pretrain.kernels.fused import Fused
from pretrain.models.model import Compute
from pretrain.models.palm import PaLM
from pretrain.models.stack import Recompute
from pretrain.objectives import NextToken
from pretrain.optim import PaLMAdafactor
from pretrain.run import Run
from pretrain.schedules import Ramp

published_parameters = 8.63e9

config = Run(
    model=PaLM(vocab=256_000, layers=32, d_model=4096, heads=16, head_dim=256, d_ff=16_384),
    data=Data(
        source=Files(glob=("data/*.jsonl.zst",)),
        tokenizer=SentencePiece(path="tokenizer.model"),
    ),
    optim=PaLMAdafactor(),
    objective=NextToken(z_loss=1e-4),
    steps=769_000,
    batch=512,
    ramp=Ramp(stages=((50_000, 256),)),
    seq_len=2048,
    compute=Compute(remat=Recompute(), attention=Fused()),
)
