"""`Sample`: what a run asks its model to write."""

from pretrain.config import Mistake, Node
from pretrain.generate.choice import Choice, Draw


class Sample(Node):
    """What the model is asked to write, during a run and at its end."""

    every: int = 1000  # steps between samples
    prompt: str = ""  # text to continue; "" starts a new document
    tokens: int = 200  # tokens to write
    choice: Choice = Draw(temperature=0.8)  # how each token is chosen

    def check(self) -> None:
        """Raises Mistake where a field is out of range."""
        if self.every < 1 or self.tokens < 0:
            raise Mistake(
                f"sample.every is {self.every} and sample.tokens is {self.tokens}: make the first 1 or "
                "more and the second 0 or more."
            )
        self.choice.check("sample.choice.")
