"""The train step: what the loss is, what moves, and what a step that is not finite leaves alone."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest

from family_reference import logits
from pretrain.optim import AdamW, Everything
from pretrain.schedules import Constant, Linear
from pretrain.sharding import lay
from pretrain.step import TrainState, deal
from tiny import (
    PALM,
    Z_LOSS,
    Arrays,
    Keep,
    T,
    assert_equal,
    assert_near,
    first_step,
    host,
    norm,
    on,
    packed,
    quick,
    run,
    trainer,
)

ADAMW = run(PALM, optim=AdamW(peak_lr=1e-2, schedule=Linear(warmup=4), decay=Everything()))


def reweighted(weights_BT: np.ndarray) -> dict[str, np.ndarray]:
    return {**packed(), "weights_BT": weights_BT.astype(np.float32)}


def log_z_and_losses(params: Any, batch: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """log(Z) and -log p(target) of every token, by the float64 reference."""
    names = ("tokens_BT", "positions_BT", "segments_BT")
    logits_BTV = logits(PALM, params, *(batch[name] for name in names))
    log_z_BT = np.log(np.exp(logits_BTV).sum(-1))
    hit_BT = np.take_along_axis(logits_BTV, batch["targets_BT"][..., None], -1)[..., 0]
    return log_z_BT, log_z_BT - hit_BT


# --- what is minimised ------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_valid_tokens_and_z_loss_that_of_squared_log_z() -> None:
    train = trainer(run(PALM))
    state, batch = train.state(), packed()
    valid = batch["weights_BT"] == 1
    log_z_BT, losses_BT = log_z_and_losses(jax.device_get(state.params), batch)
    _, step = train(state, batch)
    assert 0 < step.metrics["tokens"] == valid.sum() < valid.size
    np.testing.assert_allclose(step.metrics["loss"], losses_BT[valid].mean(), rtol=1e-6)
    z_loss = Z_LOSS * (log_z_BT[valid] ** 2).mean()
    np.testing.assert_allclose(step.metrics["z_loss"], z_loss, rtol=1e-6)


def test_the_gradient_is_that_of_loss_plus_z_loss() -> None:
    """Along one direction, against the float64 reference's difference: good to about 1e-5."""
    params = jax.device_get(trainer(run(PALM)).state().params)
    way = jax.tree.map(lambda x, n: x * n, params, _noise(params))
    valid, eps = packed()["weights_BT"] == 1, 1e-5

    def total(by: float) -> float:
        moved = jax.tree.map(lambda x, d: x.astype(np.float64) + by * d, params, way)
        log_z_BT, losses_BT = log_z_and_losses(moved, packed())
        return (losses_BT + Z_LOSS * log_z_BT**2)[valid].mean()

    slope = (total(eps) - total(-eps)) / (2 * eps)
    grads = first_step(run(PALM)).grads
    got = sum(np.vdot(grads[name], d) for name, d in host(way).items())
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(got, slope, rtol=1e-5)


def _noise(params: Any) -> Any:
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda x: draw(size=x.shape), params)


def test_tokens_of_weight_0_are_as_good_as_absent() -> None:
    """What they predict, and where nothing follows also what they are, changes no bit."""
    train, last = trainer(run(PALM)), np.arange(T) >= T - 4
    batch = reweighted(packed()["weights_BT"] * ~last)
    batch["weights_BT"][3] = 0.0
    other = {**batch, "tokens_BT": batch["tokens_BT"].copy()}
    other["tokens_BT"][:, last] = 7
    other["tokens_BT"][3] = 7
    other["targets_BT"] = np.where(batch["weights_BT"] == 1, batch["targets_BT"], 7)
    (_, got), (_, want) = train(train.state(), other), train(train.state(), batch)
    assert got.metrics["tokens"] == batch["weights_BT"].sum()
    assert got.metrics["loss"] == want.metrics["loss"] != first_step(run(PALM)).metrics["loss"]
    assert_equal(got.grads, want.grads)


def test_the_eval_step_gives_the_sums_of_the_same_loss() -> None:
    train = trainer(run(PALM))
    params, batch = train.state().params, train.put(packed())
    with on():
        sums = quick(train.program.eval_step, params, batch)(params, batch)
    means = first_step(run(PALM)).metrics
    assert sums["tokens"] == means["tokens"]
    for name in ("loss", "z_loss"):
        np.testing.assert_allclose(sums[name], means[name] * means["tokens"], rtol=1e-6)
    np.testing.assert_allclose(sums["total"], sums["loss"] + sums["z_loss"], rtol=1e-6)


def test_every_device_deals_out_its_own_rows() -> None:
    x = np.arange(16).reshape(8, 2)
    with on((("fsdp", 4),)):
        x_BT = lay(jax.numpy.asarray(x), "batch seq")
        hands = jax.jit(lambda x: deal(x, 2))(x_BT)
    np.testing.assert_array_equal(hands, [x[0::2], x[1::2]])
    held = {shard.device: set(np.ravel(shard.data)) for shard in x_BT.addressable_shards}
    assert held == {shard.device: set(np.ravel(shard.data)) for shard in hands.addressable_shards}


# --- what moves -------------------------------------------------------------------------------------


def test_gradients_above_the_clip_norm_are_scaled_down_to_it_and_others_are_not() -> None:
    free = first_step(run(PALM))
    size = norm(free.grads)
    np.testing.assert_allclose(free.metrics["grad_norm"], size, rtol=1e-6)
    for factor, kept in ((0.25, 0.25), (1.5, 1.0)):
        clipped = first_step(run(PALM, optim=Keep(clip_norm=factor * size)))
        np.testing.assert_allclose(clipped.metrics["grad_norm"], size, rtol=1e-6)
        assert_near(clipped.grads, {name: kept * g for name, g in free.grads.items()})


def test_a_step_applies_the_optimizer_at_the_rate_of_the_schedule_and_reports_both() -> None:
    """AdamW's first step, to which every element's gradient gives its sign."""
    train = trainer(ADAMW)
    state = train.state()
    before = host(state.params)
    for step, rate in enumerate((0.25e-2, 0.5e-2)):
        old = host(state.params)
        state, told = train(state, packed())
        new = host(state.params)
        np.testing.assert_allclose(told.metrics["learning_rate"], rate, rtol=1e-6)
        np.testing.assert_allclose(told.metrics["param_norm"], norm(old), rtol=1e-6)
        moved = {name: new[name] - old[name] for name in new}
        np.testing.assert_allclose(told.metrics["update_norm"], norm(moved), rtol=1e-4)
        assert int(state.step) == step + 1
    after = host(state.params)
    assert all((after[name] != before[name]).all() for name in ("norm/gain", "embedding/table"))


def test_ten_steps_on_one_batch_learn_it() -> None:
    train = trainer(ADAMW)
    state = train.state()
    losses = []
    for _ in range(10):
        state, told = train(state, packed())
        losses.append(float(told.metrics["loss"]))
    assert all(b < a for a, b in itertools.pairwise(losses))
    assert losses[-1] < losses[0] - 0.1


# --- what does not ----------------------------------------------------------------------------------


def warmed_up() -> TrainState:
    """A state with momentum."""
    train = trainer(ADAMW)
    return train(train.state(), packed())[0]


def assert_unmoved(after: TrainState, before: dict[str, Arrays]) -> None:
    assert_equal(host(after.params), before["params"])
    assert_equal(host(after.optimizer), before["optimizer"])


def kept(state: TrainState) -> dict[str, Arrays]:
    return {"params": host(state.params), "optimizer": host(state.optimizer)}


def test_a_batch_without_a_valid_token_moves_nothing_and_is_no_bad_step() -> None:
    state = warmed_up()
    before = kept(state)
    state, told = trainer(ADAMW)(state, reweighted(np.zeros_like(packed()["weights_BT"])))
    assert all(np.isfinite(value) for value in told.metrics.values())
    assert told.metrics["loss"] == told.metrics["tokens"] == told.metrics["skipped"] == 0
    assert int(state.step) == 2
    assert_unmoved(state, before)


def test_a_step_that_is_not_finite_changes_no_bit_is_counted_and_the_next_one_goes_on() -> None:
    train, state = trainer(ADAMW), warmed_up()
    before = kept(state)
    bad = packed()["weights_BT"].copy()
    bad[2, 5] = np.nan
    for row in (1, 2, 3):
        state, told = train(state, reweighted(bad))
        assert_unmoved(state, before)
        assert told.metrics["skipped"] == told.metrics["skipped_in_a_row"] == row
        assert int(state.step) == 1 + row
    state, told = train(state, packed())
    assert told.metrics["skipped"] == 3 and told.metrics["skipped_in_a_row"] == 0
    assert (host(state.params)["norm/gain"] != before["params"]["norm/gain"]).all()
    state, told = train(state, reweighted(bad))
    assert told.metrics["skipped"] == 4 and told.metrics["skipped_in_a_row"] == 1
    assert int(state.skipped) == 4 and int(state.skipped_in_a_row) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_parameter_that_is_not_finite_stops_all_others_from_moving(value: float) -> None:
    train = trainer(ADAMW)
    params = {name: x.copy() for name, x in host(train.state().params).items()}
    params["stack/blocks/mlp/down/kernel"][1, 2, 3] = value
    state = train.state(jax.tree.unflatten(jax.tree.structure(train.program.dims), params.values()))
    before = kept(state)
    state, told = train(state, packed())
    assert not np.isfinite(told.metrics["grad_norm"])
    assert told.metrics["skipped"] == 1
    assert_unmoved(state, before)


def test_a_learning_rate_too_large_for_fp32_changes_no_bit_and_is_counted() -> None:
    """Gradients are finite, and what they would do is not."""
    train = trainer(run(PALM, optim=AdamW(peak_lr=3e38, schedule=Constant())))
    state = train.state()
    before = kept(state)
    state, told = train(state, packed())
    assert np.isfinite(told.metrics["grad_norm"]) and np.isfinite(told.metrics["loss"])
    assert told.metrics["skipped"] == told.metrics["skipped_in_a_row"] == 1
    assert_unmoved(state, before)
