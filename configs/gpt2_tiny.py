"""A GPT-2 of 3.3 M parameters on the Python standard library's own sources, bytes as tokens.

python -m pretrain.launch --config gpt2_tiny.py
"""

from dataclasses import replace

from pretrain.configs.palm_tiny import config as palm_tiny
from pretrain.models.gpt2 import GPT2

config = replace(
    palm_tiny,
    model=GPT2(vocab=256, layers=4, d_model=256, heads=4, head_dim=64, d_ff=1024, context=256),
)
