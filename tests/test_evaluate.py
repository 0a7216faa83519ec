"""Held-out numbers from sums over batches."""

import math

import pytest

from pretrain.config import Mistake
from pretrain.evaluate import Evaluate, evaluate

SUMS = [{"loss": 40.0, "tokens": 10.0}, {"loss": 3.0, "tokens": 2.0}, {"loss": 90.0, "tokens": 9.0}]


def measured(batches: int | None, bytes_per_token: float = 1.0) -> dict[str, float]:
    return evaluate(lambda params, batch: batch, None, SUMS, batches, bytes_per_token)


def test_every_token_weighs_the_same_whatever_batch_it_is_in() -> None:
    assert measured(2)["eval_loss"] == pytest.approx(43 / 12)
    assert measured(None)["eval_loss"] == pytest.approx(133 / 21)
    assert measured(None)["eval_tokens"] == 21


def test_perplexity_is_per_token_and_bits_are_per_byte() -> None:
    numbers = measured(1, bytes_per_token=4.0)
    assert numbers["eval_perplexity"] == pytest.approx(math.exp(4.0))
    assert numbers["eval_bits_per_byte"] == pytest.approx(4.0 / math.log(2) / 4.0)


def test_a_loss_whose_perplexity_is_no_float_is_reported_all_the_same() -> None:
    told = evaluate(lambda params, batch: batch, None, [{"loss": 1e4, "tokens": 1.0}], 1, 1.0)
    assert told["eval_loss"] == 1e4 and math.isfinite(told["eval_perplexity"])


@pytest.mark.parametrize("name", ["every", "batches"])
def test_an_evaluation_of_nothing_or_never_is_a_mistake(name: str) -> None:
    with pytest.raises(Mistake, match=rf"evaluate\.{name} is 0: make it 1 or more"):
        Evaluate(**{name: 0}).check()
