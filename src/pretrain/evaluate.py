"""Held-out loss, perplexity and bits per byte."""

import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import jax

from pretrain.config import Mistake, Node
from pretrain.data.loader import Evaluation
from pretrain.step import Batch, Metrics


class Evaluate(Node):
    """When the held-out loss is measured, and on how much; the end of a run measures all of it."""

    every: int = 1000  # steps between evaluations
    batches: int = 16  # batches of held-out text in each of them; the same ones every time

    def check(self) -> None:
        """Raises Mistake where a field is out of range."""
        for name in ("every", "batches"):
            if getattr(self, name) < 1:
                raise Mistake(f"evaluate.{name} is {getattr(self, name)}: make it 1 or more.")


def evaluate(
    eval_step: Callable[[Any, Batch], Metrics],
    params: Any,
    held_out: Evaluation,
    batches: int | None,
    bytes_per_token: float,
) -> dict[str, float]:
    """eval_loss (nats a token), eval_perplexity and eval_bits_per_byte of the first `batches`, or all."""
    loss = tokens = 0.0
    for batch in islice(held_out, batches):
        sums = jax.device_get(eval_step(params, batch))
        loss, tokens = loss + float(sums["loss"]), tokens + float(sums["tokens"])
    mean = loss / max(tokens, 1.0)
    return {
        "eval_loss": mean,
        "eval_perplexity": math.exp(min(mean, 700.0)),  # beyond, it is no float
        "eval_bits_per_byte": mean / math.log(2) / bytes_per_token,
        "eval_tokens": tokens,
    }
