"""GPT-Neo 2.7B (Black et al., "GPT-Neo: Large Scale Autoregressive Language Modeling", 2021): sizes
as released, training of its repository.

    python -m pretrain.describe --config gpt_neo_2_7b.py --devices 32
    python -m pretrain.launch --config gpt_neo_2_7b.py

Cost: 419 B tokens, 7.3e21 FLOPs.
There is no paper. The card (EleutherAI/gpt-neo-2.7B on Hugging Face) has 420 B tokens of the Pile in
400,000 steps; its config the sizes, windows of 256 in every second layer among them. The rest is of the
repository (EleutherAI/gpt-neo): AdamW, its peak, betas, epsilon and decay of matrices, 3000 steps of
warm-up, the cosine to a tenth, clipping, 512 sequences of 2048 tokens from configs/gpt3_2-7B_256.json,
which has other heads and no windows, so it may not be what was run; how weights start and the z-loss of
1e-4 from models/. Precision there is bfloat16 for the 1.3B; of this size it is not said. No dropout.
You give: text in data/ (the Pile), and GPT-2's tokenizer.json of 50,257 tokens.
"""

from pretrain.data import Data, Files, HuggingFace
from pretrain.kernels.blockwise import Blockwise
from pretrain.models.gpt_neo import GPTNeo
from pretrain.models.model import Compute
from pretrain.models.stack import Recompute
from pretrain.objectives import NextToken
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Cosine

published_parameters = 2.7e9

config = Run(
    model=GPTNeo(
        vocab=50_257,
        vocab_multiple=128,
        context=2048,
        layers=32,
        d_model=2560,
        heads=20,
        head_dim=128,
        d_ff=10_240,
    ),
    data=Data(
        source=Files(glob=("data/*.jsonl.zst",)),
        tokenizer=HuggingFace(path="tokenizer.json"),
    ),
    optim=AdamW(peak_lr=1.6e-4, schedule=Cosine(warmup=3000)),
    objective=NextToken(z_loss=1e-4),
    steps=400_000,
    batch=512,
    seq_len=2048,
    compute=Compute(remat=Recompute(), attention=Blockwise()),
)
