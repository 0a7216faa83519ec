"""GPT-2 medium (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).

    python -m pretrain.describe --config gpt2_medium.py --devices 8
    python -m pretrain.launch --config gpt2_medium.py

Cost: 52 B tokens, 1.3e20 FLOPs.
The paper gives sizes (table 2), context and batch (section 2.3); not the optimizer, the learning
rates (tuned by hand), the schedule, the dropout or the length of training. Here they are as for
GPT-3's model of that size (arXiv 2005.14165, table 2.1 and appendix B): AdamW, 3e-4 after 375 M
tokens of warm-up, a cosine to a tenth, no dropout; 100,000 steps are our choice.
The paper's 345 M parameters are a miscount, corrected when the weights were released.
You give: text in data/ (WebText is not public), and GPT-2's tokenizer.json of 50,257 tokens.
"""

from pretrain.data import Data, Files, HuggingFace
from pretrain.kernels.blockwise import Blockwise
from pretrain.models.gpt2 import GPT2
from pretrain.models.model import Compute
from pretrain.models.stack import Recompute
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Cosine

published_parameters = 354.8e6

config = Run(
    model=GPT2(
        vocab=50_257,
        vocab_multiple=128,
        context=1024,
        layers=24,
        d_model=1024,
        heads=16,
        head_dim=64,
        d_ff=4096,
    ),
    data=Data(
        source=Files(glob=("data/*.jsonl.zst",)),
        tokenizer=HuggingFace(path="tokenizer.json"),
    ),
    optim=AdamW(peak_lr=3e-4, schedule=Cosine(warmup=715)),
    steps=100_000,
    batch=512,
    seq_len=1024,
    compute=Compute(remat=Recompute(), attention=Blockwise()),
)
