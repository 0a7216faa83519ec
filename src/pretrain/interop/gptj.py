"""GPT-J at Hugging Face: `GPTJForCausalLM`."""

from dataclasses import dataclass
from typing import Any

from pretrain.config import Mistake
from pretrain.interop.family import Family
from pretrain.interop.fields import Config, Field, Fields, Fixed, Implied, Row
from pretrain.interop.mapping import Tensor
from pretrain.models.gptj import GPTJ
from pretrain.models.positions import InterleavedRope

BLOCK = "transformer.h.{l}"
OUTSIDE_ATTENTION = (
    Tensor("embedding/table", "transformer.wte.weight", "V D -> V D"),
    Tensor("norm/gain", f"{BLOCK}.ln_1.weight", "D -> D"),
    Tensor("norm/bias", f"{BLOCK}.ln_1.bias", "D -> D"),
    Tensor("mlp/up/kernel", f"{BLOCK}.mlp.fc_in.weight", "F D -> D F"),
    Tensor("mlp/up/bias", f"{BLOCK}.mlp.fc_in.bias", "F -> F"),
    Tensor("mlp/down/kernel", f"{BLOCK}.mlp.fc_out.weight", "D F -> F D"),
    Tensor("mlp/down/bias", f"{BLOCK}.mlp.fc_out.bias", "D -> D"),
    Tensor("attention/out/kernel", f"{BLOCK}.attn.out_proj.weight", "D (N H) -> N H D"),
    Tensor("norm/gain", "transformer.ln_f.weight", "D -> D"),
    Tensor("norm/bias", "transformer.ln_f.bias", "D -> D"),
    Tensor("unembedding/kernel", "lm_head.weight", "V D -> D V"),
    Tensor("unembedding/bias", "lm_head.bias", "V -> V"),
)
TENSORS = (
    *OUTSIDE_ATTENTION,
    Tensor("attention/query/kernel", f"{BLOCK}.attn.q_proj.weight", "(N H) D -> D N H"),
    Tensor("attention/key/kernel", f"{BLOCK}.attn.k_proj.weight", "(N H) D -> D N H"),
    Tensor("attention/value/kernel", f"{BLOCK}.attn.v_proj.weight", "(N H) D -> D N H"),
)


@dataclass(frozen=True)
class RotaryDims:
    """`rope` is `rotary_dim`, how many features turn; neighbours pair, with a base of 10,000."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The key."""
        return ("rotary_dim",)

    def read(self, config: Config, fields: Fields) -> dict[str, Any]:
        """The field. Raises Mistake for null, which Hugging Face's class cannot compute either."""
        dims = config.get("rotary_dim", 64)
        if dims is None:
            raise Mistake("rotary_dim is null: give the number of features that turn")
        return {"rope": InterleavedRope(dims=dims)}

    def write(self, node: Any) -> dict[str, Any]:
        """The key. Raises Mistake for any other rotary embedding."""
        dims = node.head_dim if node.rope.dims is None else node.rope.dims
        if node.rope not in (InterleavedRope(dims=dims), InterleavedRope()):
            raise Mistake(f"model.rope is {node.rope}, which must be {InterleavedRope(dims=dims)}")
        return {"rotary_dim": dims}


FIELDS: tuple[Row, ...] = (
    Field("vocab_size", "vocab", 50400),
    Field("n_embd", "d_model", 4096),
    Field("n_layer", "layers", 28),
    Field("n_head", "heads", 16),
    Field("n_inner", "d_ff", lambda f: 4 * f["d_model"]),
    Implied("head_dim", lambda f: f["d_model"] // f["heads"]),
    RotaryDims(),
    Fixed("activation_function", "gelu_new", also=("gelu_pytorch_tanh", "gelu_fast")),
    Fixed("layer_norm_epsilon", 1e-5),
    Fixed("scale_attn_weights", True),
    Fixed("tie_word_embeddings", False),
)
IRRELEVANT = (
    "attn_pdrop", "embd_pdrop", "n_ctx", "n_positions", "resid_pdrop", "rotary",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj",
)  # fmt: skip

FAMILY = Family(
    model_type="gptj",
    architecture="GPTJForCausalLM",
    node=GPTJ,
    fields=FIELDS,
    tensors=lambda node: TENSORS,
    prefix="transformer.",
    irrelevant=IRRELEVANT,
    buffers=("h.*.attn.bias", "h.*.attn.masked_bias"),
    context="n_positions",
)
