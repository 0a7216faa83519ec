"""Gopher 117M (Rae et al., arXiv 2112.11446): sizes of table 1, training of section 3.2.

    python -m pretrain.describe --config gopher_117m.py --devices 8
    python -m pretrain.launch --config gopher_117m.py

Cost: 300 B tokens, 2.8e20 FLOPs. What the paper leaves open and what you give: see gopher_44m.py.
"""

from dataclasses import replace

from pretrain.configs.gopher_44m import config as gopher_44m

published_parameters = 117e6

config = replace(
    gopher_44m,
    model=replace(gopher_44m.model, layers=12, d_model=768, heads=12, head_dim=64, d_ff=3_072),
)
