"""Learning-rate schedules and the batch-size ramp: pure functions of the step.

Steps count from 0, so a run of `steps` takes the steps 0 ... steps - 1. Nothing here keeps state,
and the length of the run belongs to `Run`: it is handed in and never stored.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp

from pretrain.config import Mistake, Node


class Shape(Node):
    """How a rate falls while it decays: 1 at progress 0, 0 at progress 1, never rising between."""

    def at(self, progress: jax.Array) -> jax.Array:
        """What is left of the rate at `progress` in [0, 1]."""
        raise NotImplementedError


class Line(Shape):
    """1 - p."""

    def at(self, progress: jax.Array) -> jax.Array:
        """See `Shape.at`."""
        return 1.0 - progress


class HalfCosine(Shape):
    """(1 + cos(pi p)) / 2; SGDR (arXiv 1608.03983), equation 5."""

    def at(self, progress: jax.Array) -> jax.Array:
        """See `Shape.at`."""
        return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


class OneMinusSqrt(Shape):
    """1 - sqrt(p): better than a line in Haegele et al. (arXiv 2405.18392), section 3."""

    def at(self, progress: jax.Array) -> jax.Array:
        """See `Shape.at`."""
        return 1.0 - jnp.sqrt(progress)


class Schedule(Node):
    """The learning rate over its peak, for every step of a run: linear warm-up times `after`.

    The warm-up factor is min(1, (step + 1) / warmup): step 0 already moves, at 1 / warmup of the
    peak, and step warmup - 1 is the first at the whole of it.
    """

    warmup: int = 0  # steps of linear warm-up; 0 starts at the peak

    def factor(self, step: jax.typing.ArrayLike, steps: int) -> jax.Array:
        """What multiplies the peak learning rate at `step` of a run of `steps`: fp32, in [0, 1]."""
        now = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum((now + 1.0) / max(self.warmup, 1), 1.0)
        return rise * self.after(now, steps)

    def after(self, now: jax.Array, steps: int) -> jax.Array:
        """The factor without warm-up at step `now`, an fp32 array."""
        raise NotImplementedError

    def check(self, steps: int | None = None) -> None:
        """Raises Mistake where a field is out of range or unfit for a run of `steps`, if given.

        A run that ends within its warm-up is no mistake: that is how one tries a config for a few
        steps. The start banner says so.
        """
        if self.warmup < 0:
            raise Mistake(
                f"optim.schedule.warmup is {self.warmup}: set it to 0 (no warm-up) or more steps."
            )


class Constant(Schedule):
    """The peak to the end."""

    def after(self, now: jax.Array, steps: int) -> jax.Array:
        """See `Schedule.after`."""
        return jnp.ones_like(now)


class Linear(Schedule):
    """From the peak at step `warmup` straight to `final` at step `over`, where it stays.

    The end of a run is one past its last step: with `final=0` no step is taken at a rate of zero.
    """

    final: float = 0.0  # where the rate ends, as a fraction of the peak
    over: int | None = None  # step at which it does, before or after the run's end; None: there

    def after(self, now: jax.Array, steps: int) -> jax.Array:
        """See `Schedule.after`."""
        return _decay(Line(), now, self.warmup, self.over or steps, self.final)

    def check(self, steps: int | None = None) -> None:
        """See `Schedule.check`."""
        super().check(steps)
        _check_final(self.final)
        _check_over(self.over, self.warmup)


class Cosine(Schedule):
    """From the peak at step `warmup` along half a cosine to `final` at step `over`, where it stays.

    Chinchilla (arXiv 2203.15556, section 3.1) and LLaMA (arXiv 2302.13971, section 2.3) end at a
    tenth of the peak with the run; GPT-3 (arXiv 2005.14165, appendix B) before the end.
    """

    final: float = 0.1  # where the rate ends, as a fraction of the peak
    over: int | None = None  # step at which it does, before or after the run's end; None: there

    def after(self, now: jax.Array, steps: int) -> jax.Array:
        """See `Schedule.after`."""
        return _decay(HalfCosine(), now, self.warmup, self.over or steps, self.final)

    def check(self, steps: int | None = None) -> None:
        """See `Schedule.check`."""
        super().check(steps)
        _check_final(self.final)
        _check_over(self.over, self.warmup)


class Rsqrt(Schedule):
    """The peak for `constant` steps, then 1 / sqrt(step): sqrt(constant / max(step, constant)).

    T5 (arXiv 1910.10683, section 3.1.2) and PaLM (arXiv 2204.02311, section 5): with a peak of 1e-2
    and constant=10_000 this is their 1 / sqrt(max(k, 10_000)), where k counts from 0 as in T5X. The
    length of the run does not enter. With `warmup` equal to `constant` it is the Transformer's
    (arXiv 1706.03762, equation 3).
    """

    constant: int = 10_000  # steps at the peak, warm-up included

    def after(self, now: jax.Array, steps: int) -> jax.Array:
        """See `Schedule.after`."""
        return jnp.sqrt(self.constant / jnp.maximum(now, self.constant))

    def check(self, steps: int | None = None) -> None:
        """See `Schedule.check`."""
        super().check(steps)
        if self.constant < max(self.warmup, 1):
            raise Mistake(
                f"optim.schedule.constant is {self.constant} and optim.schedule.warmup is "
                f"{self.warmup}: the rate would fall before it reaches its peak, set constant to "
                f"{max(self.warmup, 1)} or more."
            )


class Exponential(Schedule):
    """The peak until step `constant`, then every step by the same factor to `final` at step `steps`.

    RWKV-4 (arXiv 2305.13048, its appendix on training).
    """

    constant: int = 0  # steps at the peak, warm-up included
    final: float  # where the rate ends, as a fraction of the peak, more than 0

    def after(self, now: jax.Array, steps: int) -> jax.Array:
        """See `Schedule.after`."""
        progress = (now - self.constant) / max(steps - self.constant, 1)
        return self.final ** jnp.clip(progress, 0.0, 1.0)

    def check(self, steps: int | None = None) -> None:
        """See `Schedule.check`."""
        super().check(steps)
        if not 0 < self.final <= 1:
            raise Mistake(
                f"optim.schedule.final is {self.final}: set it to more than 0 and at most 1, a fraction "
                "of the peak that an exponential can reach."
            )


class WarmupStableDecay(Schedule):
    """The peak, until the last `decay` steps bring it to `final` along `shape` (WSD).

    MiniCPM (arXiv 2404.06395, section 4) decays over a tenth of the run, Haegele et al. (arXiv
    2405.18392, section 3) over a fifth. A checkpoint from before the decay serves runs of any
    length. `final` is reached at step `steps`, one past the last, as in `Linear`.
    """

    decay: int  # steps of decay at the end of the run
    shape: Shape = OneMinusSqrt()  # how the rate falls: Line, HalfCosine, OneMinusSqrt
    final: float = 0.0  # where the rate ends, as a fraction of the peak

    def after(self, now: jax.Array, steps: int) -> jax.Array:
        """See `Schedule.after`."""
        return _decay(self.shape, now, steps - self.decay, steps, self.final)

    def check(self, steps: int | None = None) -> None:
        """See `Schedule.check`."""
        super().check(steps)
        _check_final(self.final)
        if self.decay < 0:
            raise Mistake(
                f"optim.schedule.decay is {self.decay}: set it to 0 (no decay) or more steps."
            )
        if steps is not None and self.decay > steps - self.warmup:
            raise Mistake(
                f"optim.schedule.decay is {self.decay}, optim.schedule.warmup is {self.warmup} and "
                f"the run has steps={steps}: set decay to {steps - self.warmup} or less."
            )


def _decay(shape: Shape, now: jax.Array, start: int, end: int, final: float) -> jax.Array:
    """1 until step `start`, `final` from step `end`, `shape` between."""
    progress = jnp.clip((now - start) / max(end - start, 1), 0.0, 1.0)
    return final + (1.0 - final) * shape.at(progress)


def _check_final(final: float) -> None:
    if not 0 <= final <= 1:
        raise Mistake(
            f"optim.schedule.final is {final}: set it to between 0 and 1, a fraction of the peak."
        )


def _check_over(over: int | None, warmup: int) -> None:
    if over is not None and over <= warmup:
        raise Mistake(
            f"optim.schedule.over is {over} and optim.schedule.warmup is {warmup}: the rate cannot fall "
            f"before it has risen, set over to more than {warmup}, or to None for the run's end."
        )


class Ramp(Node):
    """A batch size that grows by steps; what follows the last stage is the run's own batch.

    PaLM 540B (arXiv 2204.02311, section 5) is `Ramp(stages=((50_000, 512), (115_000, 1024)))` with
    a batch of 2048 sequences.
    """

    stages: tuple[tuple[int, int], ...] = ()  # (until_step, sequences): this size before that step

    def rows(self, step: int, batch: int) -> tuple[int, int]:
        """The sequences of `step`: (how many came before it, how many it takes).

        `batch` is the size after the last stage. A pure function, so that a run resumes at any step
        without a record of what it read.
        """
        first, since = 0, 0
        for until, sequences in self.stages:
            if step < until:
                return first + (step - since) * sequences, sequences
            first, since = first + (until - since) * sequences, until
        return first + (step - since) * batch, batch

    def sizes(self, batch: int) -> tuple[int, ...]:
        """The distinct batch sizes, in order of their first use: what has to divide the mesh."""
        return tuple(dict.fromkeys([*(sequences for _, sequences in self.stages), batch]))

    def check(self) -> None:
        """Raises Mistake where the stages are not in order or take no sequences."""
        for before, after in pairwise((0, *(until for until, _ in self.stages))):
            if after <= before:
                raise Mistake(
                    f"ramp.stages ends a stage at step {after} after step {before}: list "
                    "(until_step, sequences) with steps that strictly increase from 1 or more."
                )
        for until, sequences in self.stages:
            if sequences < 1:
                raise Mistake(
                    f"ramp.stages takes {sequences} sequences until step {until}: set 1 or more."
                )
