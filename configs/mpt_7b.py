"""MPT-7B (MosaicML NLP team, "Introducing MPT-7B", 2023): sizes and training as in its released card.

    python -m pretrain.describe --config mpt_7b.py --devices 32
    python -m pretrain.launch --config mpt_7b.py

Cost: 1.0 T tokens, 4.3e22 FLOPs; 9.5 days of 440 A100-40GBs.
The card (mosaicml/mpt-7b on Hugging Face) has the sizes, 1760 sequences of 2048 tokens a batch, 1 T
tokens, bfloat16 and the Lion optimizer. Not published, and here: Lion's betas and its weight decay
(our defaults), a peak of 2.4e-5, which is a fifth of the AdamW's that llm-foundry's mpt-7b.yaml
has, and from that file its warm-up of 100 steps, cosine to a tenth and clipping to 1. Dropout was
0.
You give: text in data/ (the card has the mixture), and GPT-NeoX-20B's tokenizer.json.
"""

from pretrain.data import Data, Files, HuggingFace
from pretrain.kernels.blockwise import Blockwise
from pretrain.models.model import Compute
from pretrain.models.mpt import MPT
from pretrain.models.stack import Recompute
from pretrain.optim import Lion
from pretrain.run import Run
from pretrain.schedules import Cosine

published_parameters = 6.7e9

config = Run(
    model=MPT(vocab=50_432, layers=32, d_model=4096, heads=32, head_dim=128, d_ff=16_384),
    data=Data(
        source=Files(glob=("data/*.jsonl.zst",)),
        tokenizer=HuggingFace(path="tokenizer.json"),
    ),
    optim=Lion(peak_lr=2.4e-5, schedule=Cosine(warmup=100)),
    steps=277_433,
    batch=1760,
    seq_len=2048,
    compute=Compute(remat=Recompute(), attention=Blockwise()),
)
