"""Stretched rotary frequencies: where they leave the short waves alone and divide the long ones."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.config import Mistake
from pretrain.models.positions import InterleavedRope, Rope
from pretrain.models.rope_scaling import DynamicNTK, Linear, Llama3, Scaling, YaRN

BASE, DIMS, CONTEXT = 10_000.0, 64, 2048
OWN = np.asarray(Scaling().frequencies(BASE, DIMS, jnp.int32(1)))
WAVES = CONTEXT * OWN / (2 * np.pi)  # turns of each pair within the context


def frequencies(scaling: Scaling, length: int = CONTEXT) -> np.ndarray:
    return np.asarray(scaling.frequencies(BASE, DIMS, jnp.int32(length)))


def test_linear_divides_every_frequency() -> None:
    np.testing.assert_allclose(frequencies(Linear(factor=4.0)) * 4, OWN, rtol=1e-6)


def test_dynamic_ntk_is_nothing_within_the_context_and_linear_for_the_slowest_pair_at_the_factor() -> (
    None
):
    scaling = DynamicNTK(factor=1.0, context=CONTEXT)
    np.testing.assert_allclose(frequencies(scaling, 100), OWN, rtol=1e-6)
    stretched = frequencies(scaling, 4 * CONTEXT)
    assert stretched[0] == OWN[0]
    # base^(-(d-2)/d) of the slowest pair with base * 4^(d/(d-2)): exactly a factor of 4.
    np.testing.assert_allclose(stretched[-1] * 4, OWN[-1], rtol=1e-5)


@pytest.mark.parametrize(
    "scaling", [YaRN(factor=8.0, context=CONTEXT), Llama3(factor=8.0, context=CONTEXT)]
)
def test_short_waves_stay_long_waves_are_divided_and_between_there_is_a_ramp(
    scaling: Scaling,
) -> None:
    few, many = (1.0, 32.0) if isinstance(scaling, YaRN) else (1.0, 4.0)
    got = frequencies(scaling)
    # YaRN's ramp runs over whole pairs: leave the pair at each end out.
    np.testing.assert_allclose(got[1.4 * many < WAVES], OWN[1.4 * many < WAVES], rtol=1e-6)
    np.testing.assert_allclose(got[few / 1.4 > WAVES] * 8, OWN[few / 1.4 > WAVES], rtol=1e-5)
    assert (np.diff(got / OWN) <= 1e-6).all() and ((got / OWN > 0.13) & (got / OWN < 0.99)).any()


def test_yarn_lengthens_what_it_turns() -> None:
    assert YaRN(factor=np.e, context=CONTEXT).magnitude == pytest.approx(1.1)
    rope = Rope(scaling=YaRN(factor=np.e, context=CONTEXT))
    x = jnp.ones((1, 1, 1, 8))
    turned = rope.rotation(jnp.zeros((1, 1), jnp.int32), 8)(x)
    np.testing.assert_allclose(turned, 1.1 * x, rtol=1e-6)


@pytest.mark.parametrize("rope", [Rope(dims=4), InterleavedRope(dims=4)])
def test_only_the_first_features_turn(rope: Rope) -> None:
    x = jnp.arange(1.0, 9.0).reshape(1, 1, 1, 8)
    turned = rope.rotation(jnp.full((1, 1), 3), 8)(x)
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    alone = type(rope)().rotation(jnp.full((1, 1), 3), 4)(x[..., :4])
    np.testing.assert_array_equal(turned[..., :4], alone)
    assert (turned[..., :4] != x[..., :4]).all()


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        (Rope(dims=3), r"model\.rope\.dims is 3"),
        (Rope(dims=10), r"model\.rope\.dims is 10 and model\.head_dim is 8"),
        (Rope(scaling=Linear(factor=0.5)), r"model\.rope\.scaling\.factor is 0\.5"),
        (Rope(scaling=YaRN(factor=2.0, context=8, fast=1.0)), "make fast the larger"),
        (Rope(scaling=Llama3(factor=2.0, context=8, low=4.0)), "make high the larger"),
    ],
)
def test_a_rope_that_cannot_be_is_a_mistake(rope: Rope, words: str) -> None:
    with pytest.raises(Mistake, match=words):
        rope.rotation(jnp.zeros((1, 1), jnp.int32), 8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rope", [Rope(), InterleavedRope(), Rope(dims=4), InterleavedRope(dims=4)])
def test_partners_by_a_product_are_those_that_are_cut_out_to_the_bit(
    rope: Rope, dtype: Any
) -> None:
    turn: Any = rope.rotation(jnp.full((1, 1), 3), 8)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, 8)), dtype)
    np.testing.assert_array_equal(turn._multiplied(x), turn.partner(x))
