"""A PaLM of 3.9 M parameters on the Python standard library's own sources, bytes as tokens.

    python -m pretrain.launch --config palm_tiny.py

About three minutes on two CPU cores; docs/benchmarks.md has the result.
"""

from pretrain.data import Bytes, Data, StandardLibrary
from pretrain.evaluate import Evaluate
from pretrain.generate import Sample
from pretrain.models.model import Compute
from pretrain.models.palm import PaLM
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Linear

config = Run(
    model=PaLM(vocab=256, layers=4, d_model=256, heads=4, head_dim=64, d_ff=1024),
    data=Data(source=StandardLibrary(), tokenizer=Bytes()),
    optim=AdamW(peak_lr=3e-3, schedule=Linear(warmup=20)),
    steps=300,
    batch=8,
    seq_len=256,
    compute=Compute(dtype="float32"),
    evaluate=Evaluate(every=50, batches=8),
    sample=Sample(every=100, prompt="def ", tokens=300),
)
