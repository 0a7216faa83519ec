"""What a run costs: parameters, tokens, FLOPs, counted from shapes and never estimated as 6ND."""

import functools
from dataclasses import dataclass

import jax

from pretrain import flops
from pretrain.models.model import Architecture
from pretrain.parametrisation import weights
from pretrain.run import Run


@dataclass(frozen=True)
class Cost:
    """Of one run from its first step to its last."""

    parameters: flops.Parameters
    tokens: int
    flops: int  # `flops.flops_per_token` for each of the tokens

    @property
    def tokens_per_parameter(self) -> float:
        """D / N, with N all parameters."""
        return self.tokens / self.parameters.total


@functools.cache
def parameters(model: Architecture) -> flops.Parameters:
    """The parameters of a model, by abstract evaluation."""
    tree = weights(model).tree
    return flops.count(jax.tree.map(lambda weight: weight.dims, tree), tree, model.vocab)


def cost(run: Run) -> Cost:
    """What a run costs."""
    number, tokens = parameters(run.model), sequences(run) * run.seq_len
    return Cost(number, tokens, tokens * flops_per_token(run))


def flops_per_token(run: Run) -> int:
    """Forward and backward, by the convention of `flops.flops_per_token`."""
    return flops.flops_per_token(run.model, parameters(run.model).total, run.seq_len)


def sequences(run: Run) -> int:
    """All that the run reads, its ramp included."""
    return run.ramp.rows(run.steps, run.batch)[0]
