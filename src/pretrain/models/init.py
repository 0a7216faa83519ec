"""Initialisers: `init(key, dims, shape, sharding)`, each called by `sharding.param`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

Shape = tuple[int, ...]


class Init(Protocol):
    """What a parameter starts from."""

    @property
    def rms(self) -> Callable[[str, Shape], float]:
        """The root mean square of the values for `dims` and a shape, as it is meant to be."""
        ...

    def __call__(
        self, key: jax.Array, dims: str, shape: Shape, sharding: PartitionSpec
    ) -> jax.Array:
        """The values, fp32, laid out."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Normal numbers of mean 0."""

    rms: Callable[[str, Shape], float]

    def __call__(
        self, key: jax.Array, dims: str, shape: Shape, sharding: PartitionSpec
    ) -> jax.Array:
        """See `Init`."""
        values = jax.random.normal(key, shape, jnp.float32, out_sharding=sharding)
        return self.rms(dims, shape) * values


@dataclass(frozen=True)
class Filled:
    """The same number everywhere."""

    value: float

    def rms(self, dims: str, shape: Shape) -> float:
        """See `Init`."""
        return abs(self.value)

    def __call__(
        self, key: jax.Array, dims: str, shape: Shape, sharding: PartitionSpec
    ) -> jax.Array:
        """See `Init`."""
        return self.value * jnp.ones(shape, jnp.float32, out_sharding=sharding)


ones = Filled(1.0)  # norm gains
zeros = Filled(0.0)  # biases


def normal(std: float) -> Init:
    """N(0, std^2)."""
    return Drawn(lambda dims, shape: std)


def fan_in(scale: float = 1.0) -> Init:
    """N(0, scale^2 / n_in), n_in the product of the dims before the arrow: keeps activations' scale."""

    def rms(dims: str, shape: Shape) -> float:
        inputs = dims.split("->")[0].split()
        return scale / math.sqrt(math.prod(shape[: len(inputs)]))

    return Drawn(rms)
