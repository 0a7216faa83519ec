"""GPT-NeoX-20B (Black et al., arXiv 2204.06745): sizes of section 2.1, training of section 3.

    python -m pretrain.describe --config gpt_neox_20b.py --devices 96 --mesh.tensor 2
    python -m pretrain.launch --config gpt_neox_20b.py --mesh.tensor 2

Cost: 472 B tokens, 6.1e22 FLOPs.
What the paper leaves open is from the released config (github.com/EleutherAI/gpt-neox,
configs/20B.yml): epsilon, decay, the cosine's end at a tenth, 1 % of the steps of warm-up, 1536
sequences a batch (the paper has 1538), no dropout. It was trained in float16. Which tensors decay
is not said there: matrices here. The parameters are those of its card; the table has 50,432 rows
for 50,257 tokens, and they include them.
You give: text in data/ (the Pile), and its tokenizer.json.
"""

from pretrain.data import Data, Files, HuggingFace
from pretrain.kernels.blockwise import Blockwise
from pretrain.models.gptneox import GPTNeoX
from pretrain.models.model import Compute
from pretrain.models.stack import Recompute
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Cosine

published_parameters = 20_554_567_680

config = Run(
    model=GPTNeoX(
        vocab=50_432,
        layers=44,
        d_model=6144,
        heads=64,
        head_dim=96,
        d_ff=24_576,
    ),
    data=Data(
        source=Files(glob=("data/*.jsonl.zst",)),
        tokenizer=HuggingFace(path="tokenizer.json"),
    ),
    optim=AdamW(peak_lr=0.97e-4, schedule=Cosine(warmup=1500), weight_decay=0.01),
    steps=150_000,
    batch=1536,
    seq_len=2048,
    compute=Compute(remat=Recompute(), attention=Blockwise()),
)
