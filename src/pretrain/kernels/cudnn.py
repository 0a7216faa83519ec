"""cuDNN's flash attention for GPUs, as JAX calls it, under a shard_map.

FlashAttention (Dao et al. 2022, arXiv:2205.14135) in NVIDIA's own kernels, which skip what a causal
mask or a window hides. JAX's interface to them has no segments, and no queries that start in the
middle of a sequence: both are refused here, never dropped.
"""

from typing import Any, ClassVar, Literal

import jax
from jax.ad_checkpoint import checkpoint_name

from pretrain.config import Mistake
from pretrain.kernels.attention import Attention, Demand, same_positions, shared
from pretrain.kernels.drop import Drop
from pretrain.kernels.mask import Causal, Mask

WIDEST = 128  # features of a head in the kernels of every GPU that has them
EIGHTH = 8  # heads are read in vectors of so many features


class Cudnn(Attention):
    """cuDNN flash attention for GPUs, in bf16 or fp16: memory O(T), tiles outside the mask skipped.

    Causal masks, windows, grouped and multi-query heads; no packed documents, no split sequences.
    """

    masks: ClassVar[tuple[type[Mask], ...]] = (Causal,)
    dtypes: ClassVar[tuple[str, ...]] = ("bfloat16", "float16")
    platforms: ClassVar[tuple[str, ...]] = ("gpu",)
    drops: ClassVar[bool] = False
    # A test's subclass takes JAX's own attention, which runs on a CPU.
    implementation: ClassVar[Literal["cudnn", "xla"]] = "cudnn"

    def __call__(
        self, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array | None,
        mask: Mask, drop: Drop | None = None,
    ) -> jax.Array:  # fmt: skip
        """See `Attention`."""
        N = same_positions(q_BTNH, k_BSKH)[2]
        # `check` has refused anything else.
        assert isinstance(mask, Causal) and segments_BT is None and drop is None
        k_BSKH, v_BSKH = shared(k_BSKH, N, "kv_seq"), shared(v_BSKH, N, "kv_seq")
        laid = tuple(jax.typeof(x).sharding.spec for x in (q_BTNH, k_BSKH, v_BSKH))
        local = self._local(mask)
        # The kernels do not say over which mesh axes their results vary.
        run = jax.shard_map(local, in_specs=laid, out_specs=laid[0], check_vma=False)
        return run(q_BTNH, k_BSKH, v_BSKH)

    def describe(self) -> str:
        """What runs, for the start banner."""
        return "cuDNN flash attention"

    def check(self, demand: Demand) -> None:
        """Raise Mistake with the reason where this kernel cannot do what is asked."""
        super().check(demand)
        if demand.segments:
            raise Mistake(
                "cuDNN attention cannot hide packed documents from each other: set "
                "data.mask_documents to False, or take Blockwise attention."
            )
        if demand.shards > 1:
            raise Mistake(
                f"cuDNN attention takes whole sequences and mesh.seq splits them {demand.shards} "
                "ways: set mesh.seq to 1, or take Ring or Blockwise attention."
            )
        if demand.head_dim > WIDEST or demand.head_dim % EIGHTH:
            raise Mistake(
                f"cuDNN attention takes heads of up to {WIDEST} features, in eights, and "
                f"model.head_dim is {demand.head_dim}: take Blockwise attention."
            )

    def _local(self, mask: Causal) -> Any:
        """One device's attention, whose output and softmax normaliser are named for its gradient.

        So a policy that keeps "attention" keeps both, and the kernel is not run again for them.
        """

        def plain(q_BTNH: Any, k_BSKH: Any, v_BSKH: Any) -> Any:
            # JAX counts the positions before a query, and we that query too.
            window = None if mask.window is None else (mask.window - 1, 0)
            try:
                return jax.nn.dot_product_attention(
                    q_BTNH, k_BSKH, v_BSKH,
                    is_causal=True, local_window_size=window, implementation=self.implementation,
                )  # fmt: skip
            except RuntimeError as error:
                if "cuDNN" not in str(error):
                    raise
                raise Mistake(
                    "cuDNN is not installed: pip install 'pretrain[cuda]' brings it, or take "
                    "Blockwise attention."
                ) from error

        def forward(*given: Any) -> tuple[Any, Any]:
            a_BTNH, back = jax.vjp(plain, *given)
            named_BTNH = checkpoint_name(a_BTNH, "attention")

            def name(kept: Any) -> Any:
                if any(kept is x for x in given):
                    return kept
                return named_BTNH if kept is a_BTNH else checkpoint_name(kept, "attention")

            return named_BTNH, jax.tree.map(name, back)

        attend = jax.custom_vjp(plain)
        attend.defvjp(forward, lambda back, da_BTNH: back(da_BTNH))
        return attend
