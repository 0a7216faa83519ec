"""What small runs predicted for a large one: the band that its held-out loss should end in."""

import math

from pretrain.config import Mistake, Node


class Forecast(Node):
    """The final held-out loss that a scaling law predicts for a run; none without its three numbers."""

    loss: float | None = None  # predicted by a scaling law, nats a token
    low: float | None = None  # lower end of its band
    high: float | None = None  # upper end of its band
    source: str = ""  # the fit that it comes from, and the level of its band

    def check(self, held_out: float) -> None:
        """Raises Mistake where it is no band, or nothing is held out that could be compared."""
        numbers = self.low, self.loss, self.high
        if numbers == (None, None, None):
            return
        if self._numbers is None:
            raise Mistake(
                f"forecast.low, loss and high are {self.low}, {self.loss} and {self.high}: give all "
                "three, or none."
            )
        low, loss, high = self._numbers
        if not (0 < low <= loss <= high < math.inf):
            raise Mistake(
                f"forecast.low, loss and high are {low:g}, {loss:g} and {high:g}: make them ascend, "
                "above 0."
            )
        if not held_out:
            raise Mistake(
                "forecast is of the held-out loss and data.held_out is 0: hold some text out, or "
                "leave the forecast out."
            )

    @property
    def band(self) -> dict[str, float]:
        """What it adds to every line of an evaluation; TensorBoard draws them as forecast/low and high."""
        if self._numbers is None:
            return {}
        low, _, high = self._numbers
        return {"forecast_low": low, "forecast_high": high}

    def verdict(self, reached: float) -> str | None:
        """The sentence at the end of a run that reached this held-out loss, if anything was predicted."""
        if self._numbers is None:
            return None
        low, loss, high = self._numbers
        band = f"{loss:.4f} ({low:.4f} to {high:.4f})"
        source = f", predicted by {self.source}" if self.source else ""
        if math.isnan(reached):
            return f"missed: the held-out loss is nan, and not {band}{source}"
        if low <= reached <= high:
            return f"held: held-out loss {reached:.4f} is within {band}{source}"
        side, gap = ("below", low - reached) if reached < low else ("above", reached - high)
        return f"missed by {gap:.4f}: held-out loss {reached:.4f} is {side} {band}{source}"

    @property
    def _numbers(self) -> tuple[float, float, float] | None:
        if self.low is None or self.loss is None or self.high is None:
            return None
        return self.low, self.loss, self.high
