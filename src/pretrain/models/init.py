"""Initialisers: `init(key, dims, shape, sharding)`, each called by `sharding.param`."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

Init = Callable[[jax.Array, str, tuple[int, ...], PartitionSpec], jax.Array]


def normal(std: float) -> Init:
    """N(0, std^2)."""

    def init(
        key: jax.Array, dims: str, shape: tuple[int, ...], sharding: PartitionSpec
    ) -> jax.Array:
        return std * jax.random.normal(key, shape, jnp.float32, out_sharding=sharding)

    return init


def fan_in(scale: float = 1.0) -> Init:
    """N(0, scale^2 / n_in), n_in the product of the dims before the arrow: keeps activations' scale."""

    def init(
        key: jax.Array, dims: str, shape: tuple[int, ...], sharding: PartitionSpec
    ) -> jax.Array:
        inputs = dims.split("->")[0].split()
        std = scale / math.sqrt(math.prod(shape[: len(inputs)]))
        return normal(std)(key, dims, shape, sharding)

    return init


def ones(key: jax.Array, dims: str, shape: tuple[int, ...], sharding: PartitionSpec) -> jax.Array:
    """All one: norm gains."""
    return jnp.ones(shape, jnp.float32, out_sharding=sharding)


def zeros(key: jax.Array, dims: str, shape: tuple[int, ...], sharding: PartitionSpec) -> jax.Array:
    """All zero: biases."""
    return jnp.zeros(shape, jnp.float32, out_sharding=sharding)
