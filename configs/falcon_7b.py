"""Falcon-7B (Almazrouei et al., arXiv 2311.16867): sizes and training as in its released card.

    python -m pretrain.describe --config falcon_7b.py --devices 32
    python -m pretrain.launch --config falcon_7b.py

Cost: 1.5 T tokens, 6.8e22 FLOPs.
The card (tiiuae/falcon-7b on Hugging Face) has AdamW, its peak, 4 B tokens of warm-up, the cosine's
end at 1.2e-5, weight decay, z-loss, a batch of 2304 sequences after a ramp of 30 B tokens, and
bfloat16. How the batch rises is not said: here in three stages of 10 B tokens, each of twice the
last. The schedule counts steps; its warm-up ends with 4 B tokens. Not in the card, and here as
GPT-3's: betas, epsilon, clipping, which tensors decay (matrices); weights start as a normal of
0.02.
You give: text in data/ (RefinedWeb is public in part), and Falcon's tokenizer.json.
"""

from pretrain.data import Data, Files, HuggingFace
from pretrain.kernels.blockwise import Blockwise
from pretrain.models.falcon import Falcon
from pretrain.models.model import Compute
from pretrain.models.stack import Recompute
from pretrain.objectives import NextToken
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Cosine, Ramp

published_parameters = 7e9

config = Run(
    model=Falcon(
        vocab=65_024,
        layers=32,
        d_model=4544,
        heads=71,
        head_dim=64,
        d_ff=18_176,
    ),
    data=Data(
        source=Files(glob=("data/*.jsonl.zst",)),
        tokenizer=HuggingFace(path="tokenizer.json"),
    ),
    optim=AdamW(peak_lr=6e-4, schedule=Cosine(warmup=6782, final=0.02)),
    objective=NextToken(z_loss=1e-4),
    steps=341_204,
    batch=2304,
    ramp=Ramp(stages=((16_954, 288), (25_431, 576), (29_670, 1152))),
    seq_len=2048,
    compute=Compute(remat=Recompute(), attention=Blockwise()),
)
