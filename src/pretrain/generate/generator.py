"""The runtime: prompts are read at once, then every token is one compiled step through the cache."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from pretrain import compiler
from pretrain.config import Mistake
from pretrain.generate.choice import Choice, State
from pretrain.models.cache import Cache
from pretrain.models.model import Architecture, Compute
from pretrain.sharding import Rules, spec

SHORTEST = 16  # prompts are padded to it, or to the next power of two above their length


class Generator:
    """Writes with one model and one choice on the current mesh, under `unsplit` rules.

    A text ends with any of the ids `stop`, which it then holds.
    """

    def __init__(
        self, graph: nnx.GraphDef, model: Architecture, compute: Compute, choice: Choice,
        stop: Sequence[int] = (),
    ):  # fmt: skip
        self._model = model
        stops = np.asarray(stop, np.int32)

        def choose(logits_R1V: jax.Array, state: Any) -> Any:
            def pure(logits_R1V: jax.Array, state: Any) -> Any:
                return choice.choose(logits_R1V[:, 0, : model.vocab], state, jnp.asarray(stops))

            whole = jax.tree.map(lambda _: PartitionSpec(), state)
            return jax.sharding.auto_axes(pure, out_sharding=whole)(logits_R1V, state)

        def extend(params: Any, ids_RT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
            built = nnx.merge(graph, params)
            x_RTD, cache = built.extend(ids_RT, cache)
            return built.head()(x_RTD[:, -1:]), cache

        @functools.partial(jax.jit, static_argnames="tokens", compiler_options=compiler.options())
        def read(
            params: Any, ids_BT: jax.Array, first_B: jax.Array, room_B: jax.Array,
            seed: jax.Array, tokens: int,
        ) -> tuple[Cache, Any]:  # fmt: skip
            B, T = ids_BT.shape
            # The last token of a text is never read.
            empty = replace(model.cache(B, T + tokens - 1, compute), first_B=first_B)
            logits_B1V, cache = extend(params, ids_BT, empty)
            rows_R = jnp.repeat(jnp.arange(B), choice.rows)
            logits_R1V = logits_B1V.at[rows_R].get(out_sharding=spec("batch seq vocab"))
            return cache.taken(rows_R), choose(logits_R1V, choice.start(room_B, seed, tokens))

        @functools.partial(jax.jit, donate_argnames="cache", compiler_options=compiler.options())
        def write(params: Any, cache: Cache, state: Any) -> tuple[Cache, Any]:
            ids_R1 = state.newest_R[:, None]
            logits_R1V, cache = extend(params, ids_R1, choice.follow(cache, state))
            return cache, choose(logits_R1V, state)

        self._read, self._write = read, write

    def stream(
        self, params: Any, prompts: Sequence[Sequence[int]], tokens: int, seed: int = 0
    ) -> Iterator[list[list[int]]]:
        """For each step, the ids by which it made the text of each prompt longer, the prompt apart.

        A text has `tokens` ids, or fewer: up to a stop token, or where the positions end. Raises Mistake
        for a prompt without tokens, or one that leaves no position.
        """
        if not tokens:
            return
        room_B = self.room(prompts, tokens)
        length = padded(max(map(len, prompts)))
        first_B = np.asarray([length - len(prompt) for prompt in prompts], np.int32)
        ids_BT = np.zeros((len(prompts), length), np.int32)
        for row, prompt in zip(ids_BT, prompts, strict=True):
            row[length - len(prompt) :] = prompt
        arrays = [
            jax.device_put(x, PartitionSpec())
            for x in (ids_BT, first_B, np.asarray(room_B, np.int32), np.uint32(seed))
        ]
        state: State
        cache, state = self._read(params, *arrays, tokens=tokens)
        yield state.news()
        while not np.asarray(state.over_B).all():
            cache, state = self._write(params, cache, state)
            yield state.news()

    def write(
        self, params: Any, prompts: Sequence[Sequence[int]], tokens: int, seed: int = 0
    ) -> list[list[int]]:
        """The ids that continue each prompt, all at once; see `stream`."""
        texts: list[list[int]] = [[] for _ in prompts]
        for news in self.stream(params, prompts, tokens, seed):
            for text, ids in zip(texts, news, strict=True):
                text += ids
        return texts

    def room(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[int]:
        """How many tokens each text can get. Raises Mistake where a prompt leaves no position."""
        longest = self._model.max_context
        for number, prompt in enumerate(prompts, 1):
            if not len(prompt):
                raise Mistake(f"prompt {number} is empty: give it a token or more.")
            if longest is not None and len(prompt) >= longest:
                raise Mistake(
                    f"prompt {number} has {len(prompt):,} tokens and the model {longest:,} positions, its "
                    f"own text included: shorten the prompt to {longest - 1:,} tokens or fewer."
                )
        if longest is None:
            return [tokens] * len(prompts)
        return [min(tokens, longest - len(prompt)) for prompt in prompts]


def padded(length: int) -> int:
    """The length that a prompt is padded to: a few sizes, so that few programs are compiled."""
    return max(SHORTEST, 1 << (length - 1).bit_length())


def unsplit(rules: Rules) -> Rules:
    """The rules with rows and positions whole: what a `Generator` works under."""
    return replace(rules, batch=(), seq=(), kv_seq=(), residual_seq=())
