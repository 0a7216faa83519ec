"""GPT-Neo at Hugging Face: `GPTNeoForCausalLM`."""

from dataclasses import dataclass
from typing import Any

from pretrain.config import Mistake
from pretrain.interop.dropout import Rates
from pretrain.interop.family import Family
from pretrain.interop.fields import Config, Field, Fields, Fixed, Implied, unsupported
from pretrain.interop.mapping import Tensor
from pretrain.models.gpt_neo import GPTNeo

BLOCK = "transformer.h.{l}"
TENSORS = (
    Tensor("embedding/table", "transformer.wte.weight", "V D -> V D"),
    Tensor("positions/table", "transformer.wpe.weight", "P D -> P D"),
    Tensor("attention_norm/gain", f"{BLOCK}.ln_1.weight", "D -> D"),
    Tensor("attention_norm/bias", f"{BLOCK}.ln_1.bias", "D -> D"),
    Tensor("attention/query/kernel", f"{BLOCK}.attn.attention.q_proj.weight", "(N H) D -> D N H"),
    Tensor("attention/key/kernel", f"{BLOCK}.attn.attention.k_proj.weight", "(N H) D -> D N H"),
    Tensor("attention/value/kernel", f"{BLOCK}.attn.attention.v_proj.weight", "(N H) D -> D N H"),
    Tensor("attention/out/kernel", f"{BLOCK}.attn.attention.out_proj.weight", "D (N H) -> N H D"),
    Tensor("attention/out/bias", f"{BLOCK}.attn.attention.out_proj.bias", "D -> D"),
    Tensor("mlp_norm/gain", f"{BLOCK}.ln_2.weight", "D -> D"),
    Tensor("mlp_norm/bias", f"{BLOCK}.ln_2.bias", "D -> D"),
    Tensor("mlp/up/kernel", f"{BLOCK}.mlp.c_fc.weight", "F D -> D F"),
    Tensor("mlp/up/bias", f"{BLOCK}.mlp.c_fc.bias", "F -> F"),
    Tensor("mlp/down/kernel", f"{BLOCK}.mlp.c_proj.weight", "D F -> F D"),
    Tensor("mlp/down/bias", f"{BLOCK}.mlp.c_proj.bias", "D -> D"),
    Tensor("norm/gain", "transformer.ln_f.weight", "D -> D"),
    Tensor("norm/bias", "transformer.ln_f.bias", "D -> D"),
)


@dataclass(frozen=True)
class Windows:
    """`windows` is `attention_types`, [[["global", "local"], 16]] for 32 layers, and one `window_size`.

    `attention_layers` repeats the types layer by layer.
    """

    keys: tuple[str, ...] = ("attention_types", "attention_layers", "window_size")

    def read(self, config: Config, fields: Fields) -> dict[str, Any]:
        """The windows of a period. Raises Mistake for layers in no order or of another type."""
        types = config.get("attention_types") or [[["global", "local"], 12]]
        kinds = [kind for period, times in types for _ in range(times) for kind in period]
        if len(kinds) != fields["layers"]:
            raise Mistake(
                f"attention_types has {len(kinds)} layers and num_layers is {fields['layers']}"
            )
        if config.get("attention_layers") not in (None, kinds):
            raise Mistake("attention_layers is not what attention_types says")
        for kind in kinds:
            if kind not in ("global", "local"):
                raise unsupported("attention_types", kind, "global", "local")
        period = next(
            kinds[:n]
            for n in range(1, len(kinds) + 1)
            if len(kinds) % n == 0 and kinds[:n] * (len(kinds) // n) == kinds
        )
        window = config.get("window_size") or 256
        return {"windows": tuple(window if kind == "local" else None for kind in period)}

    def write(self, node: Any) -> dict[str, Any]:
        """All three keys. Raises Mistake where two layers have windows of different sizes."""
        sizes = {window for window in node.windows if window is not None}
        if len(sizes) > 1:
            raise Mistake(f"model.windows is {node.windows}, which must be of one size there")
        period = ["global" if window is None else "local" for window in node.windows]
        times = node.layers // len(period)
        return {
            "attention_types": [[period, times]],
            "attention_layers": period * times,
            "window_size": max(sizes, default=256),
        }


FAMILY = Family(
    model_type="gpt_neo",
    architecture="GPTNeoForCausalLM",
    node=GPTNeo,
    fields=(
        Field("vocab_size", "vocab", 50257),
        Field("max_position_embeddings", "context", 2048),
        Field("hidden_size", "d_model", 2048),
        Field("num_layers", "layers", 24, also=("num_hidden_layers",)),
        Field("num_heads", "heads", 16, also=("num_attention_heads",)),
        Field("intermediate_size", "d_ff", lambda f: 4 * f["d_model"]),
        Implied("head_dim", lambda f: f["d_model"] // f["heads"]),
        Windows(),
        Rates((
            Field("embed_dropout", "embedding", 0.0),
            Field("resid_dropout", "residual", 0.0),
            Field("attention_dropout", "attention", 0.0),
        )),
        Field("initializer_range", "init_std", 0.02),
        Fixed("activation_function", "gelu_new", also=("gelu_pytorch_tanh", "gelu_fast")),
        Fixed("layer_norm_epsilon", 1e-5),
        Fixed("tie_word_embeddings", True),
    ),
    tensors=lambda node: TENSORS,
    prefix="transformer.",
    irrelevant=(
        "classifier_dropout", "summary_activation", "summary_first_dropout",
        "summary_proj_to_labels", "summary_type", "summary_use_proj",
    ),
    buffers=("h.*.attn.attention.bias", "h.*.attn.attention.masked_bias"),
    tied=lambda node: {"lm_head.weight": "transformer.wte.weight"},
)  # fmt: skip
