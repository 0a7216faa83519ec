"""IsoFLOP profiles on two CPU cores: four budgets, each on four or five sizes, bytes as tokens.

    python -m pretrain.sweep --config isoflop_tiny.py --dry-run
    python -m pretrain.sweep --config isoflop_tiny.py

Two heads in every size; the learning rate falls with the root of the width. Cost: 2.2e13 FLOPs, 13 minutes
on two cores; the loss is 1.78 at the best size of the smallest budget and 1.44 at that of the largest.
"""

from pretrain.checkpoint import Checkpoint
from pretrain.data import Bytes, Data, StandardLibrary
from pretrain.evaluate import Evaluate
from pretrain.generate import Sample
from pretrain.models.llama import LLaMA
from pretrain.models.model import Compute
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Cosine
from pretrain.sweeps.ladder import isoflop

BUDGETS = (3e11, 6e11, 1.2e12, 2.4e12)  # FLOPs
SHAPES = ((1, 32), (2, 32), (2, 48), (2, 64), (2, 96), (3, 96))  # layers, d_model


def sized(layers: int, d_model: int) -> Run:
    """The run of one size; `isoflop` sets its steps."""
    model = LLaMA(
        vocab=256, layers=layers, d_model=d_model, heads=2, kv_heads=2, head_dim=d_model // 2,
        d_ff=3 * d_model,
    )  # fmt: skip
    return Run(
        model=model,
        data=Data(source=StandardLibrary(), tokenizer=Bytes(), held_out=0.005),
        optim=AdamW(peak_lr=4e-3 * (64 / d_model) ** 0.5, schedule=Cosine(warmup=30)),
        steps=1000,
        batch=8,
        seq_len=128,
        compute=Compute(dtype="float32"),
        checkpoint=Checkpoint(every=10_000),
        evaluate=Evaluate(every=10_000),
        sample=Sample(tokens=0),
        log_every=20,
    )


jobs = 2  # models so small keep one core busy and not two
sweep = isoflop(
    {f"l{layers}d{d_model}": sized(layers, d_model) for layers, d_model in SHAPES},
    BUDGETS,
    tokens_per_parameter=(2, 220),
)
