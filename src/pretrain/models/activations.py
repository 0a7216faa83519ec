"""Activations as config nodes, for families that have been published with more than one."""

import jax

from pretrain.config import Node


class Gelu(Node):
    """x P(N(0, 1) < x) (Hendrycks & Gimpel, arXiv 1606.08415)."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Of each feature."""
        return jax.nn.gelu(x, approximate=False)


class TanhGelu(Gelu):
    """The tanh approximation of the same paper."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Of each feature."""
        return jax.nn.gelu(x, approximate=True)
