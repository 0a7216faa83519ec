"""Text from a model: the likeliest continuation, draws from the distribution, the same on any mesh."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from family_reference import drawn, logits
from pretrain.config import Mistake
from pretrain.generate import Generator, Sample, choose
from pretrain.models.model import Decoder
from pretrain.program import Program
from tiny import FAMILIES, FP32, GPT_2, LLAMA, ONE, PALM, RULES, Axes, V, on, run

PROMPT = [7, 3, 3, 59, 0]
TOKENS = 15  # what GPT-2 has positions for; one length, so that programs are shared
UNSPLIT = dataclasses.replace(RULES, batch=(), seq=(), kv_seq=(), residual_seq=())


@functools.cache
def generator(model: Decoder, axes: Axes = ONE) -> tuple[Generator, Any]:
    """A generator and drawn parameters on a mesh."""
    with on(axes) as mesh:
        program = Program(run(model), mesh)
        like = program.state.params
        params = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), drawn(like), like)
    return Generator(program.graph, model, FP32), params


def written(
    model: Decoder,
    temperature: float = 0.0,
    *,
    seed: int = 0,
    tokens: int = TOKENS,
    axes: Axes = ONE,
) -> list[int]:
    writer, params = generator(model, axes)
    with on(axes, UNSPLIT):
        return list(writer.stream(params, PROMPT, tokens, temperature, seed))


@pytest.mark.parametrize("model", FAMILIES)
def test_at_temperature_0_each_token_is_the_likeliest_after_all_before_it(model: Decoder) -> None:
    ids = written(model)
    assert len(ids) == TOKENS
    _, params = generator(model)
    row = np.asarray([PROMPT + ids])
    logits_TV = logits(model, params, row, np.arange(row.size)[None], np.zeros_like(row))[0]
    assert ids == logits_TV[len(PROMPT) - 1 : -1].argmax(-1).tolist()
    assert ids == written(model, seed=1)


def test_a_mesh_writes_what_one_device_writes() -> None:
    axes = (("fsdp", 2), ("seq", 2), ("tensor", 2))
    for temperature in (0.0, 1.0):
        assert written(LLAMA, temperature, axes=axes) == written(LLAMA, temperature)


def test_a_seed_writes_one_text_and_another_seed_another() -> None:
    texts = [written(PALM, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] != written(PALM)


def test_each_token_is_a_draw_of_its_own() -> None:
    """So hot that all tokens are alike: 15 draws of 60 hit 13.4 different ones, give or take 1.1."""
    ids = written(PALM, temperature=1e6)
    assert len(set(ids)) >= 9
    assert all(0 <= i < V for i in ids)


def test_a_text_ends_where_the_model_has_no_more_positions() -> None:
    assert GPT_2.max_context == len(PROMPT) + TOKENS
    assert written(GPT_2, tokens=100) == written(GPT_2)
    assert written(GPT_2, tokens=0) == []


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_of_logits_over_temperature(temperature: float) -> None:
    rows, logits_V = 20_000, np.array([0.0, 1.0, -1.0, 2.0, -1e30], np.float32)
    logits_B1V = jnp.broadcast_to(jnp.asarray(logits_V), (rows, 1, 5))
    with on():
        ids_B1 = choose(logits_B1V, jax.random.key(0), jnp.float32(temperature))
    assert ids_B1.shape == (rows, 1) and ids_B1.dtype == np.int32
    p = np.exp(logits_V / temperature) / np.exp(logits_V / temperature).sum()
    counts = np.bincount(np.ravel(ids_B1), minlength=5)
    # Five standard deviations of a count; what has probability 0 is never drawn.
    assert (np.abs(counts - rows * p) <= 5 * np.sqrt(rows * p * (1 - p))).all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"every": 0}, r"sample\.every is 0"),
        ({"tokens": -1}, r"sample\.tokens is -1"),
        ({"temperature": -0.5}, r"sample\.temperature is -0\.5: make it 0 \(greedy\) or more"),
    ],
)
def test_a_sample_that_cannot_be_is_a_mistake(fields: dict[str, Any], words: str) -> None:
    Sample(every=1, tokens=0, temperature=0.0).check()
    with pytest.raises(Mistake, match=words):
        Sample(**fields).check()
