"""Losses. One contract: the sum over valid tokens divided by their number, over the whole batch."""

from typing import Any

import jax

from pretrain.config import Node
from pretrain.cross_entropy import cross_entropy
from pretrain.models.model import LanguageModel

Batch = dict[str, Any]
Sums = dict[str, jax.Array]


class NextToken(Node):
    """Cross-entropy of the next token, in nats, plus z-loss (PaLM section 5: z_loss * log(Z)^2).

    Logits are taken in pieces along the sequence, so that no device ever holds more than `logits_bytes`
    of them.
    """

    z_loss: float = 0.0  # weight of log(Z)^2, which keeps the softmax normaliser near 1
    logits_bytes: int = 2**28  # fp32 logits that a device may hold at once; the loss goes in pieces

    def sums(self, model: LanguageModel, batch: Batch) -> Sums:
        """Sums over the valid tokens of a batch: "total" is to be minimised, "loss" and "z_loss" parts.

        `batch` holds tokens_BT, targets_BT, weights_BT and, where documents are told apart,
        positions_BT and segments_BT; where something is dropped, noise_B.
        """
        others = (batch.get(name) for name in ("positions_BT", "segments_BT", "noise_B"))
        x_BTD = model.hidden(batch["tokens_BT"], *others)
        sums = cross_entropy(
            model.head(), x_BTD, batch["targets_BT"], batch["weights_BT"],
            z_loss=self.z_loss, logits_bytes=self.logits_bytes,
        )  # fmt: skip
        return sums._asdict()
