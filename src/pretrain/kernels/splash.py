"""Splash attention: JAX's own Pallas kernel for TPUs, under a shard_map.

FlashAttention (Dao et al. 2022, arXiv:2205.14135) in tiles that stay in a core's vector memory, where
tiles that the mask hides are never visited. The kernel comes with JAX; here are its layouts, its
masks and what it refuses.
"""

import functools
from typing import Any, ClassVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from pretrain.config import Mistake
from pretrain.kernels.attention import Attention, Demand, same_positions, shared
from pretrain.kernels.drop import Drop
from pretrain.kernels.mask import Causal, Mask
from pretrain.sharding import lay, spec, ways

LANES = 128  # of a TPU's vector unit: the smallest tile of positions


class Splash(Attention):
    """Pallas splash attention for TPUs: memory O(T), tiles outside the mask skipped.

    Where the mesh splits the sequence, queries stay split and keys and values are gathered.
    """

    masks: ClassVar[tuple[type[Mask], ...]] = (Causal,)
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16")
    platforms: ClassVar[tuple[str, ...]] = ("tpu",)
    drops: ClassVar[bool] = False
    interpret: ClassVar[bool] = False  # a test's subclass runs the kernel on a CPU

    block: int = 1024  # queries and keys of a tile, at most

    def __call__(
        self, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array | None,
        mask: Mask, drop: Drop | None = None,
    ) -> jax.Array:  # fmt: skip
        """See `Attention`."""
        T, N = same_positions(q_BTNH, k_BSKH)[1:3]
        assert isinstance(mask, Causal) and drop is None  # `check` has refused anything else
        k_BSKH, v_BSKH = shared(k_BSKH, N, "kv_seq"), shared(v_BSKH, N, "kv_seq")
        segments_BS = None if segments_BT is None else lay(segments_BT, "batch kv_seq")
        one_key = k_BSKH.shape[2] == 1
        kernel = self._kernel(mask, T, N // ways("heads"), one_key)
        # The tables of visited tiles are split as the queries are, and alike for all heads.
        tables = kernel.manual_sharding_spec(
            NamedSharding(
                jax.sharding.get_abstract_mesh(), PartitionSpec(None, spec("batch seq")[1])
            )
        )
        laid = [jax.typeof(x).sharding.spec for x in (q_BTNH, k_BSKH, v_BSKH)]
        run = jax.shard_map(
            functools.partial(_local, one_key),
            in_specs=(tables, *laid, spec("batch seq"), spec("batch kv_seq")),
            out_specs=laid[0],
            check_vma=False,  # Pallas calls do not say over which axes their results vary
        )
        kernel = jax.tree.map(jax.sharding.reshard, kernel, tables)
        return run(kernel, q_BTNH, k_BSKH, v_BSKH, segments_BT, segments_BS)

    def describe(self) -> str:
        """What runs, for the start banner."""
        return f"Pallas splash kernel in tiles of {self.block}, keys and values gathered"

    def check(self, demand: Demand) -> None:
        """Raise Mistake with the reason where this kernel cannot do what is asked."""
        super().check(demand)
        local = demand.positions // demand.shards
        if local % LANES:
            raise Mistake(
                f"Splash attention works on tiles of {LANES} positions and a device holds {local} "
                f"of a sequence: make that a multiple of {LANES}."
            )
        if self.block < 1 or self.block % LANES or local % min(self.block, local):
            raise Mistake(
                f"attention.block is {self.block} and a device holds {local} positions of a "
                f"sequence: choose a multiple of {LANES} that divides {local}."
            )

    def _kernel(self, mask: Causal, T: int, heads: int, one_key: bool) -> Any:
        """JAX's kernel for the queries of all shards of a sequence and the heads of one device."""
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            splash_attention_kernel as splash,
        )
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

        shards = ways("seq")
        q, kv = min(self.block, T // shards), min(self.block, T)
        seen = (
            masks.CausalMask((T, T))
            if mask.window is None
            else masks.LocalMask((T, T), (mask.window - 1, 0), 0)
        )
        # The gradients' tiles are half as long: they hold five arrays where the output's hold three,
        # and a core's vector memory is 16 MiB for all of them.
        halves = self.block // 2 if self.block % (2 * LANES) == 0 else self.block
        dq, dkv = min(halves, T // shards), min(halves, T)
        return splash._make_splash_attention(
            masks.MultiHeadMask([seen] * heads),
            block_sizes=splash.BlockSizes(
                block_q=q, block_kv=kv, block_kv_compute=kv,
                block_q_dkv=dq, block_kv_dkv=dkv, block_kv_dkv_compute=dkv,
                block_q_dq=dq, block_kv_dq=dkv,
            ),
            is_mqa=one_key,
            head_shards=1,
            q_seq_shards=shards,
            # So that a policy which keeps "attention" keeps the softmax's normaliser too, and the
            # kernel is not run again for the gradient.
            residual_checkpoint_name="attention",
            interpret=self.interpret,
        )  # fmt: skip


def _local(
    one_key: bool, kernel: Any, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array,
    segments_BT: jax.Array | None, segments_BS: jax.Array | None,
) -> jax.Array:  # fmt: skip
    """One device's attention: heads outermost, as the kernel takes them."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    scaled_BTNH = q_BTNH * q_BTNH.shape[-1] ** -0.5
    q_BNTH, k_BKSH, v_BKSH = (x.swapaxes(1, 2) for x in (scaled_BTNH, k_BSKH, v_BSKH))
    if one_key:
        k_BKSH, v_BKSH = k_BKSH[:, 0], v_BKSH[:, 0]
    segments = None if segments_BT is None else SegmentIds(segments_BT, segments_BS)  # type: ignore[arg-type]  # both or neither
    return jax.vmap(kernel)(q_BNTH, k_BKSH, v_BKSH, segments).swapaxes(1, 2)
