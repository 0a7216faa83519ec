"""OPT at Hugging Face: `OPTForCausalLM`. Its 350M size alone has norms behind and a narrow embedding."""

from pretrain.interop.family import Family
from pretrain.interop.fields import Field, Fixed, Implied, Repeated
from pretrain.interop.mapping import Tensor
from pretrain.models.opt import OPT

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
    Tensor("norm/gain", "model.decoder.final_layer_norm.weight", "D -> D"),
    Tensor("norm/bias", "model.decoder.final_layer_norm.bias", "D -> D"),
)  # fmt: skip

FAMILY = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    node=OPT,
    fields=(
        Field("vocab_size", "vocab", 50272),
        Field("hidden_size", "d_model", 768),
        Field("num_hidden_layers", "layers", 12),
        Field("num_attention_heads", "heads", 12),
        Field("ffn_dim", "d_ff", 3072),
        Field("max_position_embeddings", "context", 2048),
        Implied("head_dim", lambda f: f["d_model"] // f["heads"]),
        Repeated("word_embed_proj_dim", "d_model"),
        Fixed("activation_function", "relu"),
        Fixed("do_layer_norm_before", True),
        Fixed("_remove_final_layer_norm", False),
        Fixed("enable_bias", True),
        Fixed("layer_norm_elementwise_affine", True),
        Fixed("tie_word_embeddings", True),
    ),
    tensors=lambda node: TENSORS,
    prefix="model.",
    irrelevant=("activation_dropout", "attention_dropout", "dropout", "init_std", "layerdrop"),
    tied=lambda node: {"lm_head.weight": "model.decoder.embed_tokens.weight"},
)
