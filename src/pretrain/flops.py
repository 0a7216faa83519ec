"""Parameters, FLOPs and MFU from shapes: nothing here runs, and nothing is asked of a compiler.

Compilers count the body of a scan once, so their figures are never taken.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax

from pretrain.models.model import Architecture
from pretrain.optim import is_table
from pretrain.sharding import names


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has; rows that only pad the vocabulary are none."""

    total: int
    embedding: int  # token embeddings, position tables and output heads

    @property
    def non_embedding(self) -> int:
        """What scaling laws call N."""
        return self.total - self.embedding


def count(dims: Any, params: Any, vocab: int) -> Parameters:
    """Parameters of a model from trees of logical axes and of arrays, abstract ones too.

    `Program.dims` and `Program.state.params` are such trees; `vocab` is the unpadded vocabulary.
    """

    def size(dims: str, x: Any) -> int:
        axes = zip(names(dims), x.shape, strict=True)
        return math.prod(vocab if name == "vocab" else n for name, n in axes)

    sizes = jax.tree.leaves(jax.tree.map(size, dims, params))
    tables = [n for n, d in zip(sizes, jax.tree.leaves(dims), strict=True) if is_table(d)]
    return Parameters(total=sum(sizes), embedding=sum(tables))


def flops_per_token(model: Architecture, parameters: int, seq_len: int) -> int:
    """6N + 12 L N_h H T: a token's forward and backward pass, without what is recomputed.

    PaLM (arXiv 2204.02311, appendix B). N is *all* parameters, embeddings included: PaLM's 46.2 %
    comes out with 540.35e9. The attention term counts every pair of T positions, whatever the mask.
    """
    return 6 * parameters + model.attention_flops(seq_len)


def mfu(tokens_per_second: float, flops_per_token: float, peak_flops: float) -> float:
    """Model FLOPs utilisation: the FLOPs that a model needs over those that the devices could do.

    `peak_flops` is per second, of all devices together (PaLM, appendix B).
    """
    return tokens_per_second * flops_per_token / peak_flops


def peak_flops(device_kind: str) -> float | None:
    """bf16 FLOPs per second of one device, by JAX's name for its kind; None where not known."""
    return _PEAKS.get(device_kind)


# Vendors' figures, without sparsity. A device of TPU v2, v3 and 7x is one of a chip's two cores.
_PEAKS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
}
