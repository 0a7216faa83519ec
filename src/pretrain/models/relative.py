"""Relative positions of Transformer-XL (Dai et al., arXiv 1901.02860, section 3.3)."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.config import Mistake
from pretrain.kernels.attention import Plain
from pretrain.kernels.mask import Mask
from pretrain.models.attention import Context, SelfAttention, Whole
from pretrain.models.cache import Keys, Recall, remember, weigh
from pretrain.models.init import Init, zeros
from pretrain.models.layers import RESIDUAL, Linear, along
from pretrain.sharding import lay, param, spec, ways


class RelativeAttention(SelfAttention):
    """softmax(((q_i + u) k_j + (q_i + v) W_R R_{i-j}) / sqrt(H)) v_j, R_d the sinusoids of distance d.

    The layer has its own u, v and W_R. Over whole sequences only `Plain` attention computes it.
    """

    def __init__(
        self, rngs: nnx.Rngs, *, d_model: int, heads: int, head_dim: int, mask: Mask, init: Init,
        out_init: Init,
    ):  # fmt: skip
        super().__init__(
            rngs, d_model=d_model, heads=heads, kv_heads=heads, head_dim=head_dim, mask=mask,
            init=init, out_init=out_init,
        )  # fmt: skip
        self.position = Linear(rngs, "embed -> heads head_dim", (d_model, heads, head_dim), init)
        self.content_bias = param(rngs.params(), "heads head_dim", (heads, head_dim), zeros)  # u
        self.position_bias = param(rngs.params(), "heads head_dim", (heads, head_dim), zeros)  # v

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """[B, T, D], `SHARED` in, `RESIDUAL` out."""
        layout = "batch seq heads head_dim"
        q_BTNH = checkpoint_name(self.query("BTD,DNH->BTNH", x_BTD, layout), "query")
        k_BTNH = checkpoint_name(self.key("BTD,DNH->BTNH", x_BTD, layout), "key")
        v_BTNH = checkpoint_name(self.value("BTD,DNH->BTNH", x_BTD, layout), "value")
        content_BTNH = along(q_BTNH, self.content_bias, jnp.add)
        position_BTNH = along(q_BTNH, self.position_bias, jnp.add)
        match context.attend:
            case Whole(Plain() as kernel, segments_BT, drops):
                bias_BKGCTS = self.by_shift(position_BTNH, x_BTD.shape[-1])
                drop = drops.probabilities(content_BTNH)
                a_BTNH = kernel.biased(
                    content_BTNH, k_BTNH, v_BTNH, segments_BT, self.mask, drop, bias_BKGCTS
                )
            case Recall() as recall:
                g_BTND = self.position("BTNH,DNH->BTND", position_BTNH, "batch seq heads -")
                attend = partial(recalled, self.mask)
                a_BTNH = recall.through(attend, content_BTNH, g_BTND, k_BTNH, v_BTNH)
            case _:
                raise Mistake(
                    "relative positions change the logits inside the kernel, and only Plain attention "
                    "does that: set compute.attention to Plain."
                )
        return self.out("BTNH,NHD->BTD", a_BTNH, RESIDUAL)

    def by_shift(self, q_BTNH: jax.Array, d_model: int) -> jax.Array:
        """q_i W_R R_{i-j} / sqrt(H), fp32, for `Plain.biased`; anything where j > i.

        A shard's queries meet the T + 1 largest distances that any of them has, once each; the row of
        each is then moved so that its entry j is that of key j (the paper's appendix B).
        """
        (B, T, N, H), C = q_BTNH.shape, ways("seq")
        farthest_C = (jnp.arange(C) + 1) * (T // C) - 1
        distance_CW = farthest_C[:, None] - jnp.arange(T + 1)[None]
        R_CWD = lay(sinusoids(distance_CW, d_model).astype(q_BTNH.dtype), "seq - -")
        r_CWNH = self.position("CWD,DNH->CWNH", R_CWD, "seq - heads head_dim")
        shards = spec("batch seq - heads head_dim")
        q_BCTNH = jnp.reshape(q_BTNH, (B, C, T // C, N, H), out_sharding=shards)
        s_BNCTW = jnp.einsum(
            "BCTNH,CWNH->BNCTW", q_BCTNH, r_CWNH,
            out_sharding=spec("batch heads seq - -"), preferred_element_type=jnp.float32,
        )  # fmt: skip
        rows = s_BNCTW.reshape(B, N, C, T // C * (T + 1))
        first = T // C - 1  # of the first query, the entry at key 0; the next one's is T further
        s_BNCTS = rows[..., first : first + T // C * T].reshape(B, N, C, T // C, T)
        return s_BNCTS[:, :, None] * H**-0.5


def sinusoids(positions: jax.Array, d_model: int) -> jax.Array:
    """R: sines and then cosines of D / 2 frequencies, fp32, a trailing dim behind those of positions."""
    sin, cos = turns(positions, d_model)
    return jnp.concatenate([sin, cos], -1)


def turns(positions: jax.Array, d_model: int) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of position / 10000^(2f / D) for f in 0 ... D / 2 - 1."""
    if d_model % 2:
        raise Mistake(f"model.d_model is {d_model}: relative positions need an even one.")
    frequency_f = 10_000.0 ** (-jnp.arange(0, d_model, 2, dtype=jnp.float32) / d_model)
    leading = tuple(range(positions.ndim))
    angle = positions.astype(jnp.float32)[..., None] * jnp.expand_dims(frequency_f, leading)
    return jnp.sin(angle), jnp.cos(angle)


def recalled(
    mask: Mask, q_BTNH: jax.Array, g_BTND: jax.Array, k_BTNH: jax.Array, v_BTNH: jax.Array,
    keys: Keys, slots_T: jax.Array, first_B: jax.Array,
) -> tuple[jax.Array, Keys]:  # fmt: skip
    """The attention of the newest tokens through a cache; g = W_R^T (q + v), so that g R is its term.

    R_{i-j} is R_j turned by i. So g is turned and no table of distances is made, which for one new
    token would be the dearest product of the layer.
    """
    seen, keys = remember(mask, k_BTNH, v_BTNH, keys, slots_T, first_B)
    D, H = g_BTND.shape[-1], q_BTNH.shape[-1]
    sin_T1h, cos_T1h = (x[:, None] for x in turns(seen.i_T, D))
    s_BTNh, c_BTNh = jnp.split(g_BTND.astype(jnp.float32), 2, axis=-1)
    turned_BTND = jnp.concatenate(
        [
            c_BTNh * sin_T1h[None] - s_BTNh * cos_T1h[None],
            s_BTNh * sin_T1h[None] + c_BTNh * cos_T1h[None],
        ],
        -1,
    )
    s_BNTS = jnp.einsum("BTND,SD->BNTS", turned_BTND, sinusoids(seen.j_S, D)) * H**-0.5
    return weigh(seen, q_BTNH, s_BNTS[:, :, None]), keys
