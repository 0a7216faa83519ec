"""OPT at Hugging Face: `OPTForCausalLM`. Its 350M size alone has norms behind and a narrow embedding."""

from dataclasses import dataclass, replace
from typing import Any

from pretrain.config import Mistake
from pretrain.interop.dropout import Rates
from pretrain.interop.family import Family
from pretrain.interop.fields import Config, Field, Fields, Fixed, Implied, Repeated
from pretrain.interop.mapping import Tensor
from pretrain.models.model import Architecture
from pretrain.models.opt import OPT, PostNormOPT

BLOCK = "model.decoder.layers.{l}"
TENSORS = (
    Tensor("embedding/table", "model.decoder.embed_tokens.weight", "V D -> V D"),
    Tensor("positions/table", "model.decoder.embed_positions.weight", "P D -> P D"),
    Tensor("attention_norm/gain", f"{BLOCK}.self_attn_layer_norm.weight", "D -> D"),
    Tensor("attention_norm/bias", f"{BLOCK}.self_attn_layer_norm.bias", "D -> D"),
    *(
        tensor
        for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
        for tensor in (
            Tensor(
                f"attention/{ours}/kernel", f"{BLOCK}.self_attn.{theirs}.weight",
                "(N H) D -> D N H",
            ),
            Tensor(f"attention/{ours}/bias", f"{BLOCK}.self_attn.{theirs}.bias", "(N H) -> N H"),
        )
    ),
    Tensor("attention/out/kernel", f"{BLOCK}.self_attn.out_proj.weight", "D (N H) -> N H D"),
    Tensor("attention/out/bias", f"{BLOCK}.self_attn.out_proj.bias", "D -> D"),
    Tensor("mlp_norm/gain", f"{BLOCK}.final_layer_norm.weight", "D -> D"),
    Tensor("mlp_norm/bias", f"{BLOCK}.final_layer_norm.bias", "D -> D"),
    Tensor("mlp/up/kernel", f"{BLOCK}.fc1.weight", "F D -> D F"),
    Tensor("mlp/up/bias", f"{BLOCK}.fc1.bias", "F -> F"),
    Tensor("mlp/down/kernel", f"{BLOCK}.fc2.weight", "D F -> F D"),
    Tensor("mlp/down/bias", f"{BLOCK}.fc2.bias", "D -> D"),
)  # fmt: skip
PRE_NORM = (
    Tensor("norm/gain", "model.decoder.final_layer_norm.weight", "D -> D"),
    Tensor("norm/bias", "model.decoder.final_layer_norm.bias", "D -> D"),
)
POST_NORM = (
    Tensor("widen/kernel", "model.decoder.project_in.weight", "D E -> E D"),
    Tensor("narrow/kernel", "model.decoder.project_out.weight", "E D -> D E"),
)


@dataclass(frozen=True)
class Narrow(Field):
    """The width of embeddings, which must differ from d_model: else nothing is widened there."""

    def read(self, config: Config, fields: Fields) -> dict[str, Any]:
        """The field. Raises Mistake for embeddings as wide as the rest."""
        found = super().read(config, fields)
        if found[self.field] == fields["d_model"]:
            raise Mistake(
                f"{self.key} is {found[self.field]}, which must not be hidden_size where "
                "do_layer_norm_before is False"
            )
        return found

    def write(self, node: Any) -> dict[str, Any]:
        """The key. Raises Mistake for embeddings as wide as the rest."""
        if node.d_embed == node.d_model:
            raise Mistake(f"model.d_embed is {node.d_embed}, which must not be model.d_model there")
        return super().write(node)


@dataclass(frozen=True)
class Either(Family):
    """OPT, or its 350M size, which is a class of its own here: `do_layer_norm_before` says which."""

    @property
    def nodes(self) -> tuple[type[Architecture], ...]:
        """Both classes."""
        return OPT, PostNormOPT

    def read(self, config: Config) -> Architecture:
        """See `Family.read`."""
        return Family.read(POST if config.get("do_layer_norm_before") is False else self, config)

    def write(self, node: Architecture) -> dict[str, Any]:
        """See `Family.write`."""
        return Family.write(POST if isinstance(node, PostNormOPT) else self, node)


def tensors(node: OPT) -> tuple[Tensor, ...]:
    """Of either class."""
    return (*TENSORS, *(POST_NORM if isinstance(node, PostNormOPT) else PRE_NORM))


FIELDS = (
    Field("vocab_size", "vocab", 50272),
    Field("hidden_size", "d_model", 768),
    Field("num_hidden_layers", "layers", 12),
    Field("num_attention_heads", "heads", 12),
    Field("ffn_dim", "d_ff", 3072),
    Field("max_position_embeddings", "context", 2048),
    Implied("head_dim", lambda f: f["d_model"] // f["heads"]),
    Rates((Field("dropout", "residual", 0.1), Field("attention_dropout", "attention", 0.0))),
    Fixed("activation_function", "relu"),
    Fixed("_remove_final_layer_norm", False),
    Fixed("enable_bias", True),
    Fixed("layer_norm_elementwise_affine", True),
    Fixed("tie_word_embeddings", True),
)
FAMILY = Either(
    model_type="opt",
    architecture="OPTForCausalLM",
    node=OPT,
    fields=(
        *FIELDS,
        Repeated("word_embed_proj_dim", "d_model"),
        Fixed("do_layer_norm_before", True),
    ),
    tensors=tensors,
    prefix="model.",
    irrelevant=("activation_dropout", "init_std", "layerdrop"),
    tied=lambda node: {"lm_head.weight": "model.decoder.embed_tokens.weight"},
)
POST = replace(
    FAMILY,
    node=PostNormOPT,
    fields=(
        *FIELDS,
        Narrow("word_embed_proj_dim", "d_embed", lambda f: f["d_model"]),
        Fixed("do_layer_norm_before", False),
    ),
)
