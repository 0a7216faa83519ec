"""A LLaMA of 4.3 M parameters on the Python standard library's own sources, bytes as tokens.

python -m pretrain.launch --config llama_tiny.py
"""

from dataclasses import replace

from pretrain.configs.palm_tiny import config as palm_tiny
from pretrain.models.llama import LLaMA

config = replace(
    palm_tiny,
    model=LLaMA(vocab=256, layers=4, d_model=256, heads=4, kv_heads=2, head_dim=64, d_ff=1024),
)
