"""A base run made larger: the shape nearest to a number of parameters, and a config file of it."""

import bisect
import json
import math
from dataclasses import replace
from pathlib import Path

from pretrain.config import Mistake
from pretrain.forecast import Forecast
from pretrain.models.model import Decoder
from pretrain.run import Run
from pretrain.sweeps.cost import parameters, sequences
from pretrain.sweeps.ladder import widths

WIDTHS = 8  # that are tried, next to the one that keeps the shape
SHAPE = 1.4  # how far layers may leave their proportion to the width, as a factor


def resized(model: Decoder, N: float) -> Decoder:
    """The model in other widths, layers about in proportion, with parameters nearest to N in ratio.

    A head keeps its features, so a width is a number of heads. Raises Mistake where all sizes are
    farther than a quarter from N.
    """
    # At a fixed shape N is about proportional to the cube of the width.
    heads = model.heads * (N / parameters(model).non_embedding) ** (1 / 3)
    first = max(1, round(heads) - WIDTHS // 2)
    made = [deep(model, number, N) for number in range(first, first + WIDTHS)]
    candidates = [candidate for candidate in made if candidate is not None]
    if not candidates:
        raise Mistake(f"no width of the base config gives about {N:.3g} parameters: take another.")

    def miss(candidate: Decoder) -> float:
        return abs(math.log(parameters(candidate).total / N))

    best = min(candidates, key=miss)
    if miss(best) > math.log(1.25):
        raise Mistake(
            f"the nearest size of the base config to {N:.3g} parameters has "
            f"{parameters(best).total:.3g}: take a base of smaller heads or tables."
        )
    return best


def deep(model: Decoder, heads: int, N: float) -> Decoder | None:
    """The model with so many heads and the layers that bring it nearest to N, None where none can be."""
    try:
        ((_, wide),) = widths(model, [model.d_model * heads // model.heads])
    except Mistake:  # key/value heads or the feed-forward would be no whole number
        return None
    proportional = model.layers * heads / model.heads
    number = parameters(wide)
    a_layer = number.non_embedding / wide.layers
    layers = (N - number.embedding) / a_layer
    kept = min(max(layers, proportional / SHAPE), proportional * SHAPE)
    return replace(wide, layers=max(1, round(kept)))  # type: ignore[return-value]  # a Decoder, as `model` is


def enlarged(base: Run, N: float, flops: float) -> Run:
    """The base with about N parameters, and as many steps as C = 6ND leaves tokens for."""
    if not isinstance(base.model, Decoder):
        raise Mistake(
            f"the base config has a {type(base.model).__name__}: only attention models are resized."
        )
    model = resized(base.model, N)
    tokens = flops / (6 * parameters(model).total)
    return replace(base, model=model, steps=steps_for(base, tokens))


def steps_for(run: Run, tokens: float) -> int:
    """The steps in which a run reads so many tokens, its ramp included. Raises Mistake below one."""
    most = math.ceil(tokens / run.seq_len)  # were every batch one sequence
    steps = bisect.bisect_left(range(most), tokens, key=lambda n: read(replace(run, steps=n)))
    if steps < 1 or tokens < read(replace(run, steps=1)) / 2:
        raise Mistake(
            f"{tokens:.3g} tokens are less than a step of the base: take a smaller batch."
        )
    short, long = (abs(read(replace(run, steps=n)) - tokens) for n in (steps - 1, steps))
    return steps - 1 if short < long and steps > 1 else steps


def read(run: Run) -> int:
    """Tokens that a run reads."""
    return sequences(run) * run.seq_len


def counted(run: Run) -> tuple[float, float]:
    """Parameters and tokens of a run."""
    return float(parameters(run.model).total), float(read(run))


def write(path: Path, base_name: str, base: Run, run: Run, forecast: Forecast) -> None:
    """A config file that is the base with another size, length and forecast."""
    run = replace(run, forecast=forecast)
    run.check()
    changed = [
        f"{name}={getattr(run.model, name)}"
        for name in ("layers", "d_model", "heads", "kv_heads", "d_ff")
        if getattr(run.model, name, None) != getattr(base.model, name, None)
    ]
    N, D = counted(run)
    text = f'''"""{N:.4g} parameters and {D:.4g} tokens.

The size and length that a scaling law found best, and the loss that it predicts:
{forecast.source}.
"""

from dataclasses import replace

from pretrain import config as files
from pretrain.forecast import Forecast

base = files.load({json.dumps(base_name)})
config = replace(
    base,
    model=replace(base.model, {", ".join(changed)}),
    steps={run.steps},
    forecast=Forecast(
        loss={forecast.loss!r},
        low={forecast.low!r},
        high={forecast.high!r},
        source={json.dumps(forecast.source)},
    ),
)
'''
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise Mistake(
            f"{path} cannot be written ({error.strerror}): choose another --out."
        ) from None
