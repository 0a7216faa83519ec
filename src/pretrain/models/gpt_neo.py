"""GPT-Neo (Black et al., "GPT-Neo: Large Scale Autoregressive Language Modeling", 2021), as released."""

import math
from dataclasses import dataclass, replace

import jax
from flax import nnx

from pretrain.kernels.mask import Mask
from pretrain.models.attention import Attend, Context, SelfAttention
from pretrain.models.gpt2 import GPT2, LM, gelu
from pretrain.models.init import fan_in, normal
from pretrain.models.layers import MLP, SHARED, Affine, AffineLayerNorm, Linear
from pretrain.models.model import Compute
from pretrain.sharding import lay


class GPTNeo(GPT2):
    """GPT-2 whose logits of attention are not scaled, most projections without biases."""

    # positions that a token sees in successive layers, by turns; None sees all before it
    windows: tuple[int | None, ...] = (None, 256)

    def build(self, rngs: nnx.Rngs, compute: Compute) -> LM:
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute, Block)


@dataclass(frozen=True)
class Unscaled:
    """softmax(q k) v from softmax(q k / sqrt(H)) v."""

    attend: Attend

    def __call__(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask
    ) -> jax.Array:
        """[B, T, N, H], laid out as the queries are."""
        return self.attend(q_BTNH * math.sqrt(q_BTNH.shape[-1]), k_BTKH, v_BTKH, mask)


class Attention(SelfAttention):
    """softmax(q k) v, with a bias on the way out alone (Shazeer et al.'s, arXiv 1811.02084)."""

    def __init__(self, rngs: nnx.Rngs, size: GPTNeo, mask: Mask):
        D, N, H = size.d_model, size.heads, size.head_dim
        super().__init__(
            rngs, d_model=D, heads=N, kv_heads=N, head_dim=H,
            mask=mask, init=fan_in(), out_init=fan_in(),
        )  # fmt: skip
        # The factor 1 / sqrt(H) is in what queries start from.
        self.query = Linear(rngs, "embed -> heads head_dim", (D, N, H), fan_in(1 / math.sqrt(H)))
        self.out = Affine(rngs, "heads head_dim -> embed", (N, H, D), fan_in())

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """[B, T, D], `SHARED` in, `RESIDUAL` out."""
        return super().__call__(x_BTD, replace(context, attend=Unscaled(context.attend)))


class Block(nnx.Module):
    """h = x + Attention(LayerNorm(x)), then y = h + MLP(LayerNorm(h))."""

    def __init__(self, rngs: nnx.Rngs, size: GPTNeo, mask: Mask):
        self.attention_norm = AffineLayerNorm(rngs, size.d_model)
        self.attention = Attention(rngs, size, mask)
        self.mlp_norm = AffineLayerNorm(rngs, size.d_model)
        self.mlp = MLP(
            rngs, size.d_model, size.d_ff, act=gelu, init=normal(size.init_std),
            out_init=normal(size.init_std / math.sqrt(size.layers)), linear=Affine,
        )  # fmt: skip

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        a_BTD = self.attention(lay(self.attention_norm(x_BTD), SHARED), context)
        h_BTD = x_BTD + context.drop(a_BTD, "attention")
        m_BTD = self.mlp(lay(self.mlp_norm(h_BTD), SHARED))
        return h_BTD + context.drop(m_BTD, "mlp")
