"""The same seed and batch give the same numbers, however they are laid out and computed."""

import dataclasses

import numpy as np
import pytest

from pretrain.kernels.attention import Attention, Plain
from pretrain.models.model import Compute, Decoder
from pretrain.models.stack import Recompute, Remat
from pretrain.objectives import NextToken
from pretrain.parallel.ring import Ring
from pretrain.sharding import Rules
from tiny import (
    FP32,
    GPT2_,
    LLAMA,
    ONE,
    PALM,
    RULES,
    Axes,
    assert_close,
    assert_equal,
    first_step,
    norm,
    run,
)

MEGATRON = Rules(residual_seq=("seq", "tensor"))
ALONG_D = Rules(residual=("tensor",))
RING = Ring(block=2)
MIXED: Axes = (("fsdp", 2), ("seq", 2), ("tensor", 2))


@pytest.mark.parametrize(
    ("model", "axes", "rules", "attention"),
    [
        (PALM, (("data", 8),), RULES, Plain()),
        (PALM, (("fsdp", 8),), RULES, Plain()),
        (PALM, (("tensor", 8),), RULES, Plain()),
        (PALM, (("seq", 8),), RULES, Plain()),
        (PALM, (("seq", 4), ("tensor", 2)), ALONG_D, RING),
        (PALM, (("replica", 2), ("data", 2), ("fsdp", 2)), RULES, Plain()),
        (PALM, (("replica", 2), ("fsdp", 2), ("tensor", 2)), ALONG_D, Plain()),
        (PALM, MIXED, MEGATRON, Plain()),
        (PALM, MIXED, RULES, RING),
        (PALM, (("data", 2), ("tensor", 4)), MEGATRON, Plain()),
        (LLAMA, MIXED, MEGATRON, RING),
        (LLAMA, (("data", 2), ("tensor", 4)), Rules(kv_heads=()), Plain()),
        (GPT2_, MIXED, ALONG_D, Plain()),
        (GPT2_, (("data", 2), ("seq", 2), ("tensor", 2)), MEGATRON, RING),
    ],
)  # fmt: skip
def test_every_mesh_gives_the_numbers_of_one_device(
    model: Decoder, axes: Axes, rules: Rules, attention: Attention
) -> None:
    compute = dataclasses.replace(FP32, attention=attention)
    got = first_step(run(model, rules=rules, compute=compute), axes)
    want = first_step(run(model))
    assert_equal(got.params, want.params)
    assert_close(got, want)


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_give_the_numbers_of_one_batch(microbatches: int) -> None:
    got = first_step(run(PALM, microbatches=microbatches), (("fsdp", 2), ("seq", 2)))
    assert_close(got, first_step(run(PALM)))


@pytest.mark.parametrize("remat", [Recompute(), Recompute(save=("query", "attention", "mlp_up"))])
def test_rematerialisation_changes_no_number(remat: Remat) -> None:
    got = first_step(run(PALM, compute=Compute(dtype="float32", remat=remat)))
    assert_close(got, first_step(run(PALM)))


@pytest.mark.parametrize("axes", [ONE, MIXED])
def test_a_loss_in_pieces_is_the_loss_in_one(axes: Axes) -> None:
    objective = NextToken(z_loss=0.01, logits_bytes=1)
    assert_close(first_step(run(PALM, objective=objective), axes), first_step(run(PALM)))
