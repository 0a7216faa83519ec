"""Losses. One contract: the sum over valid tokens divided by their number, over the whole batch."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pretrain.config import Node
from pretrain.models.layers import Head
from pretrain.models.model import LanguageModel
from pretrain.sharding import mesh_axes, spec, ways

Batch = dict[str, Any]
Sums = dict[str, jax.Array]


class NextToken(Node):
    """Cross-entropy of the next token, in nats, plus z-loss (PaLM section 5: z_loss * log(Z)^2).

    Logits are taken in pieces along the sequence and recomputed in the backward pass, so that no
    device ever holds more than `logits_bytes` of them.
    """

    z_loss: float = 0.0  # weight of log(Z)^2, which keeps the softmax normaliser near 1
    logits_bytes: int = 2**28  # fp32 logits that a device may hold at once; the loss goes in pieces

    def sums(self, model: LanguageModel, batch: Batch) -> Sums:
        """Sums over the valid tokens of a batch: "total" is to be minimised, "loss" and "z_loss" parts.

        `batch` holds tokens_BT, targets_BT, weights_BT and, where documents are told apart,
        positions_BT and segments_BT.
        """
        x_BTD = model.hidden(
            batch["tokens_BT"], batch.get("positions_BT"), batch.get("segments_BT")
        )
        targets_BT, weights_BT = batch["targets_BT"], batch["weights_BT"]
        loss, z = by_pieces(model.head(), x_BTD, targets_BT, weights_BT, self.logits_bytes)
        return {"total": loss + self.z_loss * z, "loss": loss, "z_loss": self.z_loss * z}


def cross_entropy(
    logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums of -log p(target) and of log(Z)^2; the vocabulary may be split."""
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    # A comparison instead of a gather: it stays local when the vocabulary is split.
    ids_BTV = jax.lax.broadcasted_iota(
        jnp.int32, logits_BTV.shape, 2, out_sharding=jax.typeof(logits_BTV).sharding.spec
    )
    hit_BT = jnp.sum(jnp.where(ids_BTV == targets_BT[..., None], logits_BTV, 0.0), axis=-1)
    return jnp.sum((log_z_BT - hit_BT) * weights_BT), jnp.sum(jnp.square(log_z_BT) * weights_BT)


def by_pieces(
    head: Head, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, logits_bytes: int
) -> tuple[jax.Array, jax.Array]:
    """`cross_entropy(head(x), ...)` without all logits at once.

    Each device walks over its own positions, under a shard_map of the axes that split tokens, so that
    the gradient of the head is summed over devices once and not once a piece.
    """
    tokens = spec("batch seq -")
    axes = mesh_axes(tokens)

    def local(
        head: Head, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        B, T, _ = x_BTD.shape
        count = pieces(B, T, head.rows // ways("vocab"), logits_bytes)
        if count == 1:
            sums = cross_entropy(head(x_BTD), targets_BT, weights_BT)
            return jax.lax.psum(sums, tuple(axes)) if axes else sums

        def piece(sums: Any, piece_of: Any) -> tuple[Any, None]:
            x_BTD, targets_BT, weights_BT = piece_of
            loss, z = cross_entropy(head(x_BTD), targets_BT, weights_BT)
            return (sums[0] + loss, sums[1] + z), None

        def cut(a: jax.Array) -> jax.Array:
            return jnp.moveaxis(a.reshape(a.shape[0], count, -1, *a.shape[2:]), 1, 0)

        zero = jnp.zeros(()) * jnp.sum(weights_BT[:1, :1])  # varies over devices as the sums do
        cuts = cut(x_BTD), cut(targets_BT), cut(weights_BT)
        sums = jax.lax.scan(jax.checkpoint(piece, prevent_cse=False), (zero, zero), cuts)[0]
        return jax.lax.psum(sums, tuple(axes)) if axes else sums

    if not axes:
        return local(head, x_BTD, targets_BT, weights_BT)
    return jax.shard_map(
        lambda head, *args: local(jax.lax.pcast(head, tuple(axes), to="varying"), *args),
        in_specs=(PartitionSpec(), tokens, spec("batch seq"), spec("batch seq")),
        out_specs=PartitionSpec(),
        axis_names=axes,
    )(head, x_BTD, targets_BT, weights_BT)


def pieces(batch: int, length: int, vocab: int, logits_bytes: int) -> int:
    """The smallest number of equal pieces of the sequence whose fp32 logits fit in `logits_bytes`.

    At least one position a piece: a batch too large for that goes one position at a time.
    """
    wanted = max(1, math.ceil(4 * batch * length * vocab / logits_bytes))
    return next((n for n in range(min(wanted, length), length) if length % n == 0), length)
