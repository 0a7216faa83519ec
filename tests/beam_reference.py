"""Beam search in plain Python, over a table that gives the next token's log-probabilities."""

from collections.abc import Mapping

import numpy as np

from pretrain.generate.beam import Beam

V = 9
Table = Mapping[tuple[int, ...], np.ndarray]


class Chain(dict[tuple[int, ...], np.ndarray]):
    """Log-probabilities of the next token after a text, drawn for each; `raised` are often likelier."""

    def __init__(self, seed: int, vocab: int = V, raised: tuple[int, ...] = ()) -> None:
        self.seed, self.vocab, self.raised = seed, vocab, raised

    def __missing__(self, text: tuple[int, ...]) -> np.ndarray:
        draw = np.random.default_rng([self.seed, *(i + 1 for i in text)])
        logits = draw.normal(size=self.vocab, scale=1.5).astype(np.float32)
        logits[list(self.raised)] += self.seed % 3
        self[text] = logits - np.log(np.sum(np.exp(logits)))
        return self[text]


Ended = list[tuple[float, tuple[int, ...]]]


def searched(table: Table, beam: Beam, stop: tuple[int, ...], tokens: int) -> Ended:
    """The complete texts with their scores, best first: lists that are sorted and cut."""
    running, ended = [(0.0, ())], Ended()
    for length in range(1, tokens + 1):
        candidates = sorted(
            (
                (score + float(p), (*text, i))
                for score, text in running
                for i, p in enumerate(table[text])
            ),
            reverse=True,
        )

        def ends(text: tuple[int, ...], length: int = length) -> bool:
            return text[-1] in stop or length == tokens

        ended += [
            (score / length**beam.length_penalty, text)
            for score, text in candidates[: beam.beams]
            if ends(text)
        ]
        ended = sorted(ended, reverse=True)[: beam.beams]
        running = [(score, text) for score, text in candidates if not ends(text)][: beam.beams]
        full = len(ended) == beam.beams
        if not running or (full and running[0][0] / length**beam.length_penalty <= ended[-1][0]):
            break
    return ended
