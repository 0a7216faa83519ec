"""Choices against their definitions in numpy: top-k, top-p, the softmax that is drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.generate.choice import Draw, Greedy, Rows, likeliest, nucleus

LOGITS = np.random.default_rng(0).normal(size=(6, 40), scale=3).astype(np.float32)
HIDDEN = -1e30


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def top_p_set(logits_V: np.ndarray, p: float) -> set[int]:
    """The likeliest tokens, one by one, until they have p together."""
    probabilities, kept, mass = softmax(logits_V), set[int](), 0.0
    for token in np.argsort(-logits_V):
        kept.add(int(token))
        mass += probabilities[token]
        if mass >= p:
            break
    return kept


def kept(logits_RV: jax.Array) -> list[set[int]]:
    """The tokens of each row that can be drawn, whose logits must be as they were."""
    values = np.asarray(logits_RV)
    assert ((values == LOGITS) | (values == np.float32(HIDDEN))).all()
    return [set(np.flatnonzero(row > HIDDEN / 2).tolist()) for row in values]


@pytest.mark.parametrize("k", [1, 2, 7, 40, 100])
def test_top_k_keeps_the_k_largest_logits(k: int) -> None:
    want = [set(np.argsort(-row)[:k].tolist()) for row in LOGITS]
    assert kept(likeliest(jnp.asarray(LOGITS), k)) == want


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_tokens_that_have_p_together(p: float) -> None:
    assert kept(nucleus(jnp.asarray(LOGITS), p)) == [top_p_set(row, p) for row in LOGITS]


def test_top_p_1_keeps_all() -> None:
    assert kept(nucleus(jnp.asarray(LOGITS), 1.0)) == [set(range(40))] * 6


def test_equal_logits_stay_or_go_together() -> None:
    logits_1V = jnp.asarray([[2.0, 3.0, 2.0, 1.0]])
    for heated in (likeliest(logits_1V, 2), nucleus(logits_1V, 0.6)):
        assert np.asarray(heated).tolist() == [[2.0, 3.0, 2.0, np.float32(HIDDEN)]]


def drawn(draw: Draw, logits_V: np.ndarray, rows: int) -> np.ndarray:
    """The first token of so many rows with the same logits."""
    state = draw.start(jnp.full((rows,), 9), jnp.uint32(0), 9)
    logits_RV = jnp.broadcast_to(jnp.asarray(logits_V), (rows, len(logits_V)))
    after = draw.choose(logits_RV, state, jnp.zeros((0,), jnp.int32))
    assert after.newest_R.dtype == np.int32
    return np.asarray(after.newest_R)


@pytest.mark.parametrize(
    ("draw", "allowed"),
    [
        (Draw(temperature=0.5), [0, 1, 2, 3]),
        (Draw(), [0, 1, 2, 3]),
        (Draw(temperature=2.0), [0, 1, 2, 3]),
        (Draw(temperature=2.0, top_k=2), [1, 3]),
        # At temperature 1 they have 0.64, 0.24 ...; at 2 they have 0.46, 0.28 and 0.17 of the three.
        (Draw(temperature=2.0, top_p=0.7), [1, 3]),
        (Draw(temperature=2.0, top_k=3, top_p=0.9), [0, 1, 3]),
    ],
)
def test_draws_follow_the_softmax_of_logits_over_temperature(
    draw: Draw, allowed: list[int]
) -> None:
    rows, logits_V = 20_000, np.array([0.0, 1.0, -1.0, 2.0, HIDDEN], np.float32)
    p = np.zeros(5)
    p[allowed] = softmax(logits_V[allowed] / draw.temperature)
    counts = np.bincount(drawn(draw, logits_V, rows), minlength=5)
    # Five standard deviations of a count; what has probability 0 is never drawn.
    assert (np.abs(counts - rows * p) <= 5 * np.sqrt(rows * p * (1 - p))).all()


def test_a_row_is_over_with_a_stop_token_or_when_its_room_is_taken() -> None:
    state: Rows = Greedy().start(jnp.asarray([3, 3, 2]), jnp.uint32(0), 3)
    stop_E = jnp.asarray([4], jnp.int32)
    said = []
    for choices in ([1, 4, 2], [3, 3, 4], [4, 0, 0], [0, 0, 0]):
        state = Greedy().choose(jax.nn.one_hot(jnp.asarray(choices), 5), state, stop_E)
        said.append((state.news(), np.asarray(state.over_B).tolist()))
    assert said == [
        ([[1], [4], [2]], [False, True, False]),
        ([[3], [], [4]], [False, True, True]),
        ([[4], [], []], [True, True, True]),
        ([[], [], []], [True, True, True]),
    ]
