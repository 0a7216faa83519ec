"""GPT-3 125M, "Small" (Brown et al., arXiv 2005.14165): table 2.1, section 2.1 and appendix B.

    python -m pretrain.describe --config gpt3_125m.py --devices 16
    python -m pretrain.launch --config gpt3_125m.py
    python -m pretrain.launch --config gpt3_125m.py --model.windows None 256

Cost: 300 B tokens, 2.9e20 FLOPs.
The paper's layers alternate dense and locally banded attention and the width of the band is not
given: here all are dense, and the last command alternates, with the width of GPT-Neo. The batch
rises "linearly" from 32 k tokens over the first 4 to 12 B, by size: here over 4 B, and 12 B for
175B, and it doubles where that line has doubled. The schedule counts steps: the warm-up ends with
375 M tokens, the cosine with 260 B at a tenth, where the rate stays, and the run with 300 B. The
paper's 0.5 M tokens are taken as 256 sequences. Not in the paper: which tensors decay (matrices
here), the weights' start beyond "as GPT-2", precision, dropout (none here).
You give: text in data/ (the mixture is of table 2.2), and GPT-2's tokenizer.json of 50,257 tokens.
"""

from pretrain.data import Data, Files, HuggingFace
from pretrain.kernels.blockwise import Blockwise
from pretrain.models.gpt2 import GPT2
from pretrain.models.model import Compute
from pretrain.models.stack import Recompute
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Cosine, Ramp

published_parameters = 125e6

config = Run(
    model=GPT2(
        vocab=50_257,
        vocab_multiple=128,
        context=2048,
        layers=12,
        d_model=768,
        heads=12,
        head_dim=64,
        d_ff=3072,
    ),
    data=Data(
        source=Files(glob=("data/*.jsonl.zst",)),
        tokenizer=HuggingFace(path="tokenizer.json"),
    ),
    optim=AdamW(peak_lr=6e-4, schedule=Cosine(warmup=9791, over=520_833)),
    steps=597_127,
    batch=256,
    ramp=Ramp(stages=((8138, 16), (16_276, 32), (24_414, 64), (32_552, 128))),
    seq_len=2048,
    compute=Compute(remat=Recompute(), attention=Blockwise()),
)
