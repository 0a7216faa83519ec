"""Text from a model: a prompt is read at once, then each token is one compiled step through the cache."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pretrain import compiler
from pretrain.config import Mistake, Node
from pretrain.models.cache import Cache
from pretrain.models.model import Compute, Decoder
from pretrain.sharding import spec


class Sample(Node):
    """What the model is asked to write, during a run and at its end."""

    every: int = 1000  # steps between samples
    prompt: str = ""  # text to continue; "" starts a new document
    tokens: int = 200  # tokens to write
    temperature: float = 0.8  # logits are divided by it; 0 always takes the likeliest token

    def check(self) -> None:
        """Raises Mistake where a field is out of range."""
        if self.every < 1 or self.tokens < 0:
            raise Mistake(
                f"sample.every is {self.every} and sample.tokens is {self.tokens}: make the first 1 or "
                "more and the second 0 or more."
            )
        if self.temperature < 0:
            raise Mistake(f"sample.temperature is {self.temperature}: make it 0 (greedy) or more.")


class Generator:
    """Writes with one model on the current mesh, under rules that split neither batch nor positions."""

    def __init__(self, graph: nnx.GraphDef, model: Decoder, compute: Compute):
        self._model, self._compute = model, compute

        @functools.partial(jax.jit, donate_argnums=2, compiler_options=compiler.options())
        def extend(
            params: Any, tokens_BT: jax.Array, cache: Cache, key: jax.Array, temperature: jax.Array
        ) -> tuple[jax.Array, Cache]:
            built = nnx.merge(graph, params)
            x_BTD, cache = built.extend(tokens_BT, cache)
            logits_B1V = built.head()(x_BTD[:, -1:])
            step = jax.random.fold_in(key, cache.length)
            return choose(logits_B1V, step, temperature), cache

        self._extend = extend

    def stream(
        self, params: Any, prompt: Sequence[int], tokens: int, temperature: float, seed: int
    ) -> Iterator[int]:
        """The ids that continue `prompt`, one at a time; `tokens` of them, fewer where positions end."""
        longest = self._model.max_context
        length = len(prompt) + tokens if longest is None else min(len(prompt) + tokens, longest)
        cache = self._model.cache(1, length, self._compute)
        key, heat = jax.random.key(seed), jnp.float32(temperature)
        ids_BT = jax.device_put(np.asarray([prompt], np.int32), spec("- -"))
        for _ in range(length - len(prompt)):
            ids_BT, cache = self._extend(params, ids_BT, cache, key, heat)
            yield int(ids_BT[0, 0])


def choose(logits_B1V: jax.Array, key: jax.Array, temperature: jax.Array) -> jax.Array:
    """Ids [B, 1] drawn from softmax(logits / temperature); the likeliest where temperature is 0."""

    def draw(logits_B1V: jax.Array, key: jax.Array, temperature: jax.Array) -> jax.Array:
        drawn = jax.random.categorical(key, logits_B1V / jnp.maximum(temperature, 1e-6), axis=-1)
        return jnp.where(temperature > 0, drawn, jnp.argmax(logits_B1V, axis=-1)).astype(jnp.int32)

    return jax.sharding.auto_axes(draw, out_sharding=spec("- -"))(logits_B1V, key, temperature)
