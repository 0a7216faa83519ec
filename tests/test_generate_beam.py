"""Beam search against searches in plain Python, over a table that gives the next token's logits."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beam_reference import Chain, searched
from pretrain.generate.beam import Beam
from tiny import QUICK

N = 5


def ours(
    tables: list[Chain], beam: Beam, stop: tuple[int, ...], room: list[int]
) -> tuple[list[list[int]], list[float]]:
    """The best text of each table, and its score, all in one batch."""
    choose = jax.jit(beam.choose, compiler_options=QUICK)
    state = beam.start(jnp.asarray(room), jnp.uint32(0), max(room))
    found: list[list[int]] = [[] for _ in tables]
    while not np.asarray(state.over_B).all():
        texts_BW = np.asarray(state.running.ids_BWN)[:, :, : int(state.written)].tolist()
        rows = [
            table[tuple(text)]
            for table, texts in zip(tables, texts_BW, strict=True)
            for text in texts
        ]
        # A constant more: logits are no log-probabilities.
        logits_RV = jnp.asarray(np.stack(rows) + 3, jnp.float32)
        state = choose(logits_RV, state, jnp.asarray(stop, jnp.int32))
        found = [a + b for a, b in zip(found, state.news(), strict=True)]
    return found, np.asarray(state.ended.scores_BW)[:, 0].tolist()


@pytest.mark.parametrize(
    ("beams", "penalty", "stop"),
    [
        (1, 1.0, (3,)),
        (2, 1.0, ()),
        (2, 0.0, (3,)),
        (2, -0.5, (0, 5)),
        (4, 1.0, (3,)),
        (4, 2.0, (0, 5)),
        (4, 1.0, (0, 5, 8)),
        (3, 3.0, (0, 5, 8)),
    ],
)
def test_the_search_is_that_of_sorted_lists(
    beams: int, penalty: float, stop: tuple[int, ...]
) -> None:
    beam = Beam(beams=beams, length_penalty=penalty)
    """Also where nearly all of the best continuations end their texts."""
    tables = [Chain(seed, raised=stop) for seed in range(30)]
    room = [N - (seed % 4 == 3) for seed in range(30)]
    want = [searched(t, beam, stop, tokens)[0] for t, tokens in zip(tables, room, strict=True)]
    texts, scores = ours(tables, beam, stop, room)
    assert texts == [list(text) for _, text in want]
    np.testing.assert_allclose(scores, [score for score, _ in want], rtol=1e-5)


def test_a_search_wide_enough_finds_the_best_of_all_texts() -> None:
    """Without a penalty a longer text is never better, so that no search ends too early."""
    vocab, tokens, stop = 3, 4, 2
    beam = Beam(beams=vocab**tokens, length_penalty=0.0)
    for seed in range(4):
        table = Chain(seed, vocab)

        def score(text: tuple[int, ...], table: Chain = table) -> float:
            return sum(float(table[text[:n]][i]) for n, i in enumerate(text))

        texts = [
            text
            for length in range(1, tokens + 1)
            for text in itertools.product(range(vocab), repeat=length)
            if stop not in text[:-1] and (text[-1] == stop or length == tokens)
        ]
        (found,), (scored,) = ours([table], beam, (stop,), [tokens])
        assert tuple(found) == max(texts, key=score)
        assert math.isclose(scored, score(tuple(found)), rel_tol=1e-5)
