"""Attention: the protocol of its kernels and the plain jnp reference.

A kernel computes softmax(q k^T / sqrt(H)) v for N = K * G query heads that share K key/value heads
(Ainslie et al. 2023, arXiv:2305.13245; K = 1 is multi-query, K = N multi-head). G counts the query
heads of one key/value head and C the shards that hold one sequence; other letters as everywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pretrain.config import Mistake, Node
from pretrain.kernels.drop import Drop
from pretrain.kernels.mask import Alibi, Causal, Mask, hidden, slant
from pretrain.sharding import lay, spec, ways


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a run asks of its attention kernel; `Attention.check` answers it."""

    positions: int  # length of a sequence
    heads: int  # query heads, N
    kv_heads: int  # key/value heads, K
    head_dim: int  # features of a head, H
    mask: Mask  # which keys a query may see
    segments: bool  # whether packed documents are hidden from each other
    dtype: Any  # of queries, keys and values
    platform: str  # "cpu", "gpu" or "tpu"
    shards: int = 1  # devices that hold one sequence between them: the mesh axis seq
    dropout: float = 0.0  # share of the probabilities that a train step drops


class Attention(Node):
    """A kernel. Queries arrive laid out "batch seq heads head_dim", keys and values
    "batch seq kv_heads head_dim" ("-" in place of kv_heads where K is 1), segments "batch seq".
    """

    masks: ClassVar[tuple[type[Mask], ...]] = (Causal, Alibi)
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16")
    platforms: ClassVar[tuple[str, ...]] = ("cpu", "gpu", "tpu")
    drops: ClassVar[bool] = True  # whether it can drop probabilities

    def __call__(
        self, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array | None,
        mask: Mask, drop: Drop | None = None,
    ) -> jax.Array:  # fmt: skip
        """a_BTNH in the dtype and layout of q. Logits are scaled by 1 / sqrt(H) here.

        A query sees the keys that `mask` allows and, with segments, only those of its own segment.
        Queries and keys are of the same positions, S = T. Softmax runs in fp32. `drop` has noise
        [B, T, N] for rows of probabilities, whose elements are the keys by position; they are dropped
        behind the softmax, whose normaliser counts them all. What a policy of rematerialisation may
        keep for the gradient is named "attention" here.
        """
        raise NotImplementedError

    def check(self, demand: Demand) -> None:
        """Raise Mistake with the reason where this kernel cannot do what is asked."""
        name, d = type(self).__name__, demand
        d.mask.check()
        if type(d.mask) not in self.masks:
            known = ", ".join(mask.__name__ for mask in self.masks)
            raise Mistake(f"{name} attention has no {type(d.mask).__name__} mask, only {known}.")
        if d.mask.slopes and len(d.mask.slopes) != d.heads:
            raise Mistake(f"the mask has {len(d.mask.slopes)} slopes for {d.heads} query heads.")
        if d.heads % d.kv_heads:
            raise Mistake(
                f"{d.heads} query heads cannot share {d.kv_heads} key/value heads evenly: "
                "make heads a multiple of kv_heads."
            )
        if d.positions % d.shards:
            raise Mistake(
                f"{d.positions} positions do not divide over the {d.shards} devices of mesh.seq: "
                f"make the sequence a multiple of {d.shards}."
            )
        dtype = jnp.dtype(d.dtype).name
        if dtype not in self.dtypes:
            known = ", ".join(self.dtypes)
            raise Mistake(f"{name} attention does not compute in {dtype}, only in {known}.")
        if d.platform not in self.platforms:
            known = ", ".join(self.platforms)
            raise Mistake(f"{name} attention does not run on {d.platform}, only on {known}.")
        if d.dropout and not self.drops:
            raise Mistake(
                f"{name} attention drops no probabilities and model.dropout.attention is {d.dropout}: "
                "set compute.attention to Blockwise, or model.dropout.attention to 0."
            )

    def on(self, demand: Demand) -> "Attention":
        """The kernel that does what is asked: this one, unless it is a choice of several."""
        return self

    def describe(self) -> str:
        """What runs, in a few words, for the start banner."""
        raise NotImplementedError


class Plain(Attention):
    """The reference in jnp: whole rows of logits, probabilities kept for the backward pass, O(T S).

    Where the mesh splits the sequence, queries stay split and keys and values are gathered:
    all-gather context parallelism. Queries go in runs, each against only the keys its mask reaches.
    """

    parts: int = 2  # runs of queries; under a causal mask 2 spare a quarter of the work

    def __call__(
        self, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array | None,
        mask: Mask, drop: Drop | None = None,
    ) -> jax.Array:  # fmt: skip
        """See `Attention`."""
        return self.biased(q_BTNH, k_BSKH, v_BSKH, segments_BT, mask, drop, jnp.zeros((1,) * 6))

    def biased(
        self, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array | None,
        mask: Mask, drop: Drop | None, added_BKGCTS: jax.Array,
    ) -> jax.Array:  # fmt: skip
        """The same with something added to the logits, in fp32; every dim but S may be 1.

        C shards of T / C queries each: its layout is that of the logits, "batch heads - seq - -".
        """
        B, T, N, H = same_positions(q_BTNH, k_BSKH)
        k_BKSH = shared(k_BSKH, N, "kv_seq").transpose(0, 2, 1, 3)
        v_BKSH = shared(v_BSKH, N, "kv_seq").transpose(0, 2, 1, 3)
        K, C = k_BKSH.shape[1], ways("seq")
        # With a dim of their own for the shards, a run of queries is one slice on every device.
        grouped = spec(f"batch seq - {groups(K)} head_dim")
        q_BCTKGH = jnp.reshape(q_BTNH, (B, C, T // C, K, N // K, H), out_sharding=grouped)
        q_BKGCTH = q_BCTKGH.transpose(0, 3, 4, 1, 2, 5)
        bias_BKGCTS = self._bias(segments_BT, mask, T, C, K) + added_BKGCTS
        runs = []
        for run, keys in self._runs(mask, T, C):
            bias, kept = bias_BKGCTS[..., run, keys], self._kept(drop, run, keys, C, K)
            q, k, v = q_BKGCTH[..., run, :], k_BKSH[:, :, keys], v_BKSH[:, :, keys]
            runs.append(attend(q, k, v, bias, kept))
        a_BCTKGH = jnp.concatenate(runs, axis=4).transpose(0, 3, 4, 1, 2, 5)
        laid = spec("batch seq heads head_dim")
        a_BTNH = jnp.reshape(a_BCTKGH, q_BTNH.shape, out_sharding=laid)
        return checkpoint_name(a_BTNH, "attention")

    def describe(self) -> str:
        """What runs, for the start banner."""
        return "plain jnp, keys and values gathered along the sequence"

    def check(self, demand: Demand) -> None:
        """Raise Mistake with the reason where this kernel cannot do what is asked."""
        super().check(demand)
        if self.parts < 1:
            raise Mistake(f"attention.parts is {self.parts}: queries go in 1 run or more.")

    def _runs(self, mask: Mask, T: int, C: int) -> Iterator[tuple[slice, slice]]:
        """Slices of a shard's queries, each with that of the keys which any of the shards needs."""
        step = -(-T // C // self.parts)
        for first in range(0, T // C, step):
            end = min(first + step, T // C)
            last = (C - 1) * (T // C) + end - 1
            seen = [j for j in range(T) if mask.reaches(first, last, j, j)]
            yield slice(first, end), slice(seen[0], seen[-1] + 1)

    def _bias(self, segments_BT: jax.Array | None, mask: Mask, T: int, C: int, K: int) -> jax.Array:
        """[B or 1, K or 1, G or 1, C, T / C, S]: what is added to logits, `HIDDEN` where none is seen."""
        i_CT = jnp.arange(T).reshape(C, T // C, 1)
        j_S = jnp.arange(T).reshape(1, 1, T)
        if segments_BT is None:
            bias_BCTS = hidden(mask, i_CT, j_S)[None]
        else:
            shape = (len(segments_BT), C, T // C)
            own_BCT = jnp.reshape(segments_BT, shape, out_sharding=spec("batch seq -"))
            seen_BS = lay(segments_BT, "batch kv_seq")
            own, seen = own_BCT[..., None], seen_BS[:, None, None]
            bias_BCTS = hidden(mask, i_CT[None], j_S[None], own, seen)
        bias_BKGCTS = bias_BCTS[:, None, None]
        if mask.slopes:
            slopes_KG = lay(jnp.asarray(mask.slopes, jnp.float32).reshape(K, -1), groups(K))
            bias_BKGCTS += slant(slopes_KG, i_CT, j_S)[None]
        return bias_BKGCTS

    def _kept(self, drop: Drop | None, run: slice, keys: slice, C: int, K: int) -> Any:
        """[B, K, G, C, T, S]: what the probabilities of a run are multiplied by; None without dropout."""
        if drop is None:
            return None

        def grouped(x_BTN: jax.Array) -> jax.Array:
            B, T, N = x_BTN.shape
            shape, laid = (B, C, T // C, K, N // K), spec(f"batch seq - {groups(K)}")
            x_BCTKG = jnp.reshape(x_BTN, shape, out_sharding=laid)
            return x_BCTKG.transpose(0, 3, 4, 1, 2)[..., run]

        return jax.tree.map(grouped, drop).weights(jnp.arange(keys.start, keys.stop))


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, kept: jax.Array | None
) -> jax.Array:
    """[B, K, G, C, T, H] in v's dtype: softmax(q k^T / sqrt(H) + bias) v, the softmax in fp32.

    Probabilities are multiplied by `kept`, where that is given.
    """
    s = jnp.einsum("BKGCTH,BKSH->BKGCTS", q, k, preferred_element_type=jnp.float32)
    p = jax.nn.softmax(s * q.shape[-1] ** -0.5 + bias, axis=-1)
    p = p if kept is None else p * kept
    return jnp.einsum("BKGCTS,BKSH->BKGCTH", p.astype(v.dtype), v)


def groups(K: int) -> str:
    """Logical axes of the dims [K, G] of grouped queries; one of the two is split as heads are."""
    return "- heads" if K == 1 else "heads -"


def shared(x_BSKH: jax.Array, N: int, positions: str) -> jax.Array:
    """Keys or values laid out "batch {positions}", their heads beside the queries that share them.

    One head stays whole, several are split as query heads are. Where rules.kv_heads keeps several
    whole and query heads are split, they are repeated to N and then split.
    """
    B, S, K, H = x_BSKH.shape
    if K == 1:
        return lay(x_BSKH, f"batch {positions} - head_dim")
    if spec("kv_heads") == spec("heads"):
        return lay(x_BSKH, f"batch {positions} heads head_dim")
    if spec("kv_heads") != spec("-"):
        raise Mistake("rules.kv_heads must be what rules.heads is, or () to repeat whole heads.")
    whole_BSKH = lay(x_BSKH, f"batch {positions} - head_dim")
    repeated = jnp.broadcast_to(whole_BSKH[:, :, :, None], (B, S, K, N // K, H))
    return lay(jnp.reshape(repeated, (B, S, N, H)), f"batch {positions} heads head_dim")


def same_positions(q_BTNH: jax.Array, k_BSKH: jax.Array) -> tuple[int, int, int, int]:
    """The shape of q. Raises ValueError where queries and keys are not of the same sequences."""
    if q_BTNH.shape[:2] != k_BSKH.shape[:2]:
        raise ValueError(
            f"queries {q_BTNH.shape} and keys {k_BSKH.shape} are not of the same positions"
        )
    B, T, N, H = q_BTNH.shape
    return B, T, N, H
