"""PaLM 62B (Chowdhery et al., arXiv 2204.02311): sizes of table 1, training of section 5.

    python -m pretrain.describe --config palm_62b.py --devices 512
    python -m pretrain.launch --config palm_62b.py

Cost: 780 B tokens, 3.0e23 FLOPs. What the paper leaves open and what you give: see palm_8b.py; the
batch doubles from 512 to 1024 sequences at step 50,000 here.
"""

from dataclasses import replace

from pretrain.configs.palm_8b import config as palm_8b
from pretrain.schedules import Ramp

published_parameters = 62.50e9

config = replace(
    palm_8b,
    model=replace(palm_8b.model, layers=64, d_model=8192, heads=32, d_ff=32_768),
    steps=397_000,
    batch=1024,
    ramp=Ramp(stages=((50_000, 512),)),
)
