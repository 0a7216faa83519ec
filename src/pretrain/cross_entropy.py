"""Cross-entropy of a head's logits, in pieces, its gradient made beside the loss.

Logits exist once, a piece of them at a time: the loss of a piece, the gradient of its hidden states and
its part of the head's follow from one product. To recompute logits in the backward pass would be a
fourth product beside the three. The vocabulary may be split: maxima and sums travel between devices,
logits never (Shoeybi et al., arXiv 1909.08053, section 3). The head's gradient is added in fp32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pretrain.models.layers import Head
from pretrain.sharding import across, axes_of, scatter, spec

TOKENS, HIDDEN = "batch seq", "batch seq -"


class Sums(NamedTuple):
    """Over the tokens of a batch, weighted, in nats. Only the total has a gradient."""

    total: jax.Array  # loss + z_loss
    loss: jax.Array  # -log p(target)
    z_loss: jax.Array  # log(Z)^2, times its weight


def cross_entropy(
    head: Head, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, *,
    z_loss: float, logits_bytes: int,
) -> Sums:  # fmt: skip
    """The sums for hidden states, with at most so many bytes of fp32 logits on a device at once.

    Weights are data and get no gradient.
    """
    made = _sums(z_loss, logits_bytes, head, x_BTD, targets_BT, weights_BT)
    return Sums(made.total, *map(jax.lax.stop_gradient, made[1:]))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(
    z_loss: float, logits_bytes: int, head: Head,
    x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array,
) -> Sums:  # fmt: skip
    piece, over = Piece(z_loss, axes_of("vocab")), axes_of(TOKENS)

    def finish(sums: Sums, _: None) -> Sums:
        return across(jax.lax.psum, sums, over)

    walk = Walk(piece.loss, finish, PartitionSpec(), logits_bytes)
    return walk(head, x_BTD, targets_BT, weights_BT)


def _forward(
    z_loss: float, logits_bytes: int, head: Head,
    x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array,
) -> tuple[Sums, tuple[Head, jax.Array]]:  # fmt: skip
    piece, over, add_up = Piece(z_loss, axes_of("vocab")), axes_of(TOKENS), scatter(head.dims)

    def finish(made: tuple[Sums, Head], dx_CBtD: jax.Array) -> Any:
        sums, dhead = made
        bias_V = None if dhead.bias_V is None else across(jax.lax.psum, dhead.bias_V, over)
        dhead = replace(dhead, weight=add_up(dhead.weight), bias_V=bias_V)
        dx_BCtD = jnp.moveaxis(dx_CBtD, 0, 1)
        return (
            across(jax.lax.psum, sums, over),
            dhead,
            dx_BCtD.reshape(dx_BCtD.shape[0], -1, dx_BCtD.shape[-1]),
        )

    outs = PartitionSpec(), head.laid(spec(head.dims)), spec(HIDDEN)
    walk = Walk(piece.gradient, finish, outs, logits_bytes)
    sums, dhead, dx_BTD = walk(head, x_BTD, targets_BT, weights_BT)
    return sums, (dhead, dx_BTD)


def _backward(
    z_loss: float, logits_bytes: int, kept: tuple[Head, jax.Array], cotangents: Sums
) -> tuple[Head, jax.Array, None, None]:
    def scaled(g: jax.Array) -> jax.Array:
        # One over a number of tokens, rounded to bfloat16, would scale all by what it lacks.
        return (g.astype(jnp.float32) * cotangents.total).astype(g.dtype)

    dhead, dx_BTD = jax.tree.map(scaled, kept)
    return dhead, dx_BTD, None, None


_sums.defvjp(_forward, _backward)


@dataclass(frozen=True)
class Piece:
    """The arithmetic of one piece on one device, which holds some rows of the vocabulary."""

    z_loss: float
    vocab: tuple[str, ...]  # mesh axes that split it

    def loss(
        self, head: Head, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
    ) -> tuple[Sums, None]:
        """The sums of the piece."""
        _, log_z_BT, hit_BT, _ = self._softmax(head, x_BTD, targets_BT)
        return self._sums(log_z_BT, hit_BT, weights_BT), None

    def gradient(
        self, head: Head, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
    ) -> tuple[tuple[Sums, Head], jax.Array]:
        """The sums, the gradients of the head's rows that are here, and of x."""
        p_BTV, log_z_BT, hit_BT, is_target_BTV = self._softmax(head, x_BTD, targets_BT)
        slope_BT = 1 + 2 * self.z_loss * log_z_BT
        dlogits_BTV = p_BTV * slope_BT[..., None] - is_target_BTV.astype(jnp.float32)
        dlogits_BTV *= weights_BT[..., None]
        dy_BTV = (head.scale * dlogits_BTV).astype(x_BTD.dtype)
        inputs, y_dims = head.equation.split("->")
        x_dims, w_dims = inputs.split(",")
        dx_BTD = jnp.einsum(f"{y_dims},{w_dims}->{x_dims}", dy_BTV, head.weight)
        dw = jnp.einsum(
            f"{x_dims},{y_dims}->{w_dims}", x_BTD, dy_BTV, preferred_element_type=jnp.float32
        )
        bias_V = None if head.bias_V is None else jnp.sum(dlogits_BTV, axis=(0, 1))
        sums = self._sums(log_z_BT, hit_BT, weights_BT)
        return (sums, replace(head, weight=dw, bias_V=bias_V)), across(
            jax.lax.psum, dx_BTD, self.vocab
        )

    def _softmax(
        self, head: Head, x_BTD: jax.Array, targets_BT: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Probabilities, log(Z), the targets' logits, and where the targets are."""
        first = jax.lax.axis_index(self.vocab) * head.rows if self.vocab else 0
        logits_BTV = head.finished(
            jnp.einsum(head.equation, x_BTD, head.weight, preferred_element_type=jnp.float32), first
        )
        top_BT = across(jax.lax.pmax, jnp.max(logits_BTV, axis=-1), self.vocab)
        exp_BTV = jnp.exp(logits_BTV - top_BT[..., None])
        z_BT = across(jax.lax.psum, jnp.sum(exp_BTV, axis=-1), self.vocab)
        is_target_BTV = first + jnp.arange(head.rows)[None, None] == targets_BT[..., None]
        hit_BT = across(
            jax.lax.psum, jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0.0), -1), self.vocab
        )
        return exp_BTV / z_BT[..., None], top_BT + jnp.log(z_BT), hit_BT, is_target_BTV

    def _sums(self, log_z_BT: jax.Array, hit_BT: jax.Array, weights_BT: jax.Array) -> Sums:
        loss = jnp.sum((log_z_BT - hit_BT) * weights_BT)
        if not self.z_loss:  # logits that fp32 holds have squares that it does not
            return Sums(loss, loss, jnp.zeros_like(loss))
        z_loss = self.z_loss * jnp.sum(jnp.square(log_z_BT) * weights_BT)
        return Sums(loss + z_loss, loss, z_loss)


@dataclass(frozen=True)
class Walk:
    """Each device walks over its own positions in pieces, and what it has found is added up once."""

    step: Callable[..., tuple[Any, Any]]  # (head, x, targets, weights) -> (to be added, to be kept)
    finish: Callable[[Any, Any], Any]  # of both, over devices
    outs: Any  # how it lies then
    logits_bytes: int

    def __call__(self, head: Head, *tokens: jax.Array) -> Any:
        """What `finish` makes of all pieces."""
        head = head.whole()
        if not (axes_of(TOKENS) or axes_of(head.dims)):
            return self._local(head, *tokens)
        laid = head.laid(spec(head.dims.replace("embed", "-")))
        ins = laid, spec(HIDDEN), spec(TOKENS), spec(TOKENS)
        # What varies over devices matters to differentiation alone, which has a rule of its own here.
        local = jax.shard_map(self._local, in_specs=ins, out_specs=self.outs, check_vma=False)
        return local(head, *tokens)

    def _local(self, head: Head, *tokens: jax.Array) -> Any:
        B, T, _ = tokens[0].shape
        count = pieces(B, T, head.rows, self.logits_bytes)

        def add(total: Any, piece: Any) -> tuple[Any, Any]:
            found, kept = self.step(head, *piece)
            return jax.tree.map(jnp.add, total, found), kept

        cuts = [jnp.moveaxis(a.reshape(B, count, -1, *a.shape[2:]), 1, 0) for a in tokens]
        found, _ = jax.eval_shape(self.step, head, *(a[0] for a in cuts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)
        return self.finish(*jax.lax.scan(add, zeros, cuts))


def pieces(batch: int, length: int, vocab: int, logits_bytes: int) -> int:
    """The smallest number of equal pieces of the sequence whose fp32 logits fit in `logits_bytes`.

    At least one position a piece: a batch too large for that goes one position at a time.
    """
    wanted = max(1, math.ceil(4 * batch * length * vocab / logits_bytes))
    return next((n for n in range(min(wanted, length), length) if length % n == 0), length)
