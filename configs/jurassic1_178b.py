"""Jurassic-1 178B, "J1-Jumbo" (Lieber et al., "Jurassic-1: Technical Details and Evaluation", 2021): table 1.

    python -m pretrain.describe --config jurassic1_178b.py --devices 1024 --mesh.tensor 8 --mesh.seq 8
    python -m pretrain.launch --config jurassic1_178b.py --mesh.tensor 8 --mesh.seq 8

Cost: 300 B tokens, 3.3e23 FLOPs.
The batch rises from 32 k to 3.2 M tokens and the rate's peak is 6e-5 after a warm-up, as GPT-3
175B's (so the survey arXiv 2303.18223 has it, in its table of optimization settings); how long both
take is here as for that model, see gpt3_175b.py. What else the paper leaves open and what you give:
see jurassic1_7_5b.py.
"""

from dataclasses import replace

from pretrain.configs.gpt3_175b import config as gpt3_175b
from pretrain.configs.jurassic1_7_5b import config as jurassic1_7_5b

published_parameters = 178e9

config = replace(
    gpt3_175b,
    model=replace(
        jurassic1_7_5b.model, layers=76, d_model=13_824, heads=96, head_dim=144, d_ff=55_296
    ),
    data=jurassic1_7_5b.data,
)
