"""How rotary embeddings are stretched to contexts longer than a model was trained on."""

import math

import jax
import jax.numpy as jnp

from pretrain.config import Mistake, Node


class Scaling(Node):
    """The frequencies of rotary embeddings. This class leaves them as they are."""

    @property
    def magnitude(self) -> float:
        """What turned queries and keys are multiplied by."""
        return 1.0

    def frequencies(self, base: float, dims: int, length: jax.Array) -> jax.Array:
        """Radians a position of each of the dims / 2 pairs, fp32; `length` is the longest position + 1."""
        return base ** (-jnp.arange(0, dims, 2, dtype=jnp.float32) / dims)

    def check(self) -> None:
        """Raises Mistake where a field is out of range."""


class Linear(Scaling):
    """Positions divided by a factor (Chen et al., arXiv 2306.15595)."""

    factor: float  # how many times longer the context becomes

    def frequencies(self, base: float, dims: int, length: jax.Array) -> jax.Array:
        """Every frequency divided."""
        return super().frequencies(base, dims, length) / self.factor

    def check(self) -> None:
        """Raises Mistake where the factor does not lengthen."""
        longer(self.factor)


class DynamicNTK(Scaling):
    """A larger base, as large as the sequence at hand asks for; none within the context trained on.

    base * (factor * length / context - (factor - 1))^(dims / (dims - 2)): "NTK-aware" scaling, dynamic
    (Peng et al., arXiv 2309.00071, sections 3.1 and 3.3), as Hugging Face computes it.
    """

    factor: float  # how many times longer the context becomes
    context: int  # positions that the model was trained on

    def frequencies(self, base: float, dims: int, length: jax.Array) -> jax.Array:
        """The frequencies of the larger base."""
        longest = jnp.maximum(length, self.context).astype(jnp.float32)
        stretch = self.factor * longest / self.context - (self.factor - 1)
        stretched = base * stretch ** (dims / (dims - 2))
        return stretched ** (-jnp.arange(0, dims, 2, dtype=jnp.float32) / dims)

    def check(self) -> None:
        """Raises Mistake where the factor does not lengthen."""
        longer(self.factor)


class YaRN(Scaling):
    """Slow pairs as `Linear`, fast ones untouched, a ramp between (Peng et al., arXiv 2309.00071).

    Logits are heated by turning queries and keys that are 0.1 ln(factor) + 1 times longer (eq. 22).
    """

    factor: float  # how many times longer the context becomes
    context: int  # positions that the model was trained on
    fast: float = 32.0  # pairs that turn more often than this within the context stay as they are
    slow: float = 1.0  # pairs that turn less often are divided as by `Linear`
    # length of turned queries and keys; None is 0.1 ln(factor) + 1
    attention: float | None = None

    @property
    def magnitude(self) -> float:
        """As configured, or 0.1 ln(factor) + 1."""
        return 0.1 * math.log(self.factor) + 1.0 if self.attention is None else self.attention

    def frequencies(self, base: float, dims: int, length: jax.Array) -> jax.Array:
        """Between divided and untouched, by how often a pair turns within the context."""
        own = super().frequencies(base, dims, length)

        def pair(turns: float) -> float:
            return dims * math.log(self.context / (turns * 2 * math.pi)) / (2 * math.log(base))

        first = max(math.floor(pair(self.fast)), 0)
        last = min(math.ceil(pair(self.slow)), dims - 1)
        span = max(
            last - first, 0.001
        )  # as Hugging Face: one pair is a step, not a division by zero
        ramp_h = jnp.clip((jnp.arange(dims // 2, dtype=jnp.float32) - first) / span, 0, 1)
        return own * (1 - ramp_h) + own / self.factor * ramp_h

    def check(self) -> None:
        """Raises Mistake where the factor does not lengthen or the ramp runs backwards."""
        longer(self.factor)
        if not self.fast > self.slow > 0:
            raise Mistake(
                f"model.rope.scaling has fast={self.fast} and slow={self.slow} turns: make fast the larger."
            )


class Llama3(Scaling):
    """LLaMA 3.1's: pairs of long waves as `Linear`, of short ones untouched, a ramp in the frequency.

    Dubey et al., arXiv 2407.21783, give the lengthening in stages; this is the released code's form.
    """

    factor: float  # how many times longer the context becomes
    context: int  # positions that the model was trained on
    low: float = 1.0  # waves longer than context / low are divided
    high: float = 4.0  # waves shorter than context / high stay as they are

    def frequencies(self, base: float, dims: int, length: jax.Array) -> jax.Array:
        """Between divided and untouched, by the waves that fit in the context."""
        own = super().frequencies(base, dims, length)
        waves = self.context * own / (2 * math.pi)
        share = jnp.clip((waves - self.low) / (self.high - self.low), 0, 1)
        return own * share + own / self.factor * (1 - share)

    def check(self) -> None:
        """Raises Mistake where the factor does not lengthen or the ramp runs backwards."""
        longer(self.factor)
        if not self.high > self.low:
            raise Mistake(
                f"model.rope.scaling has low={self.low} and high={self.high}: make high the larger."
            )


def longer(factor: float) -> None:
    """Raises Mistake for a factor that makes nothing longer."""
    if factor < 1:
        raise Mistake(f"model.rope.scaling.factor is {factor}: make it 1 or more.")
