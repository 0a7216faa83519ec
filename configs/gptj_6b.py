"""GPT-J-6B (Wang and Komatsuzaki, github.com/kingoflolz/mesh-transformer-jax, 2021): 6B_roto_256.json.

    python -m pretrain.describe --config gptj_6b.py --devices 32
    python -m pretrain.launch --config gptj_6b.py

Cost: 402 B tokens, 1.6e22 FLOPs.
The batch is that file's, 32 replicas of a TPU v3-256 with 16 sequences each; the steps are those of
the released weights. Adam's betas and epsilon are optax's defaults, as in its device_train.py; all
its matrices decay. The cosine ends at step 303,000 and the rate stays at its tenth. Its layers
start otherwise; here a normal of 0.02. It has no dropout. The card counts 6,053,381,344 parameters;
the sizes multiply out to 6,050,882,784. The table has 50,400 rows for 50,257 tokens, and both
counts include them.
You give: text in data/ (the Pile), and GPT-2's tokenizer.json.
"""

from pretrain.data import Data, Files, HuggingFace
from pretrain.kernels.blockwise import Blockwise
from pretrain.models.gptj import GPTJ
from pretrain.models.model import Compute
from pretrain.models.stack import Recompute
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Cosine

published_parameters = 6.05e9

config = Run(
    model=GPTJ(vocab=50_400, layers=28, d_model=4096, heads=16, head_dim=256, d_ff=16_384),
    data=Data(
        source=Files(glob=("data/*.jsonl.zst",)),
        tokenizer=HuggingFace(path="tokenizer.json"),
    ),
    optim=AdamW(peak_lr=1.2e-4, schedule=Cosine(warmup=3000, over=303_000), b2=0.999),
    steps=383_500,
    batch=512,
    seq_len=2048,
    compute=Compute(remat=Recompute(), attention=Blockwise()),
)
