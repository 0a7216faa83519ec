"""BLOOM at Hugging Face: `BloomForCausalLM`, whose fused rows are query, key and value of each head."""

from pretrain.interop.dropout import Rates
from pretrain.interop.family import Family
from pretrain.interop.fields import Field, Fixed, Implied
from pretrain.interop.mapping import Part, Tensor
from pretrain.models.bloom import Bloom

BLOCK = "transformer.h.{l}"
TENSORS = (
    Tensor("embedding/table", "transformer.word_embeddings.weight", "V D -> V D"),
    Tensor("embedding_norm/gain", "transformer.word_embeddings_layernorm.weight", "D -> D"),
    Tensor("embedding_norm/bias", "transformer.word_embeddings_layernorm.bias", "D -> D"),
    Tensor("attention_norm/gain", f"{BLOCK}.input_layernorm.weight", "D -> D"),
    Tensor("attention_norm/bias", f"{BLOCK}.input_layernorm.bias", "D -> D"),
    *(
        tensor
        for at, name in enumerate(("query", "key", "value"))
        for tensor in (
            Tensor(
                f"attention/{name}/kernel", f"{BLOCK}.self_attention.query_key_value.weight",
                "(N c H) D -> D N H", Part(at, of=3),
            ),
            Tensor(
                f"attention/{name}/bias", f"{BLOCK}.self_attention.query_key_value.bias",
                "(N c H) -> N H", Part(at, of=3),
            ),
        )
    ),
    Tensor("attention/out/kernel", f"{BLOCK}.self_attention.dense.weight", "D (N H) -> N H D"),
    Tensor("attention/out/bias", f"{BLOCK}.self_attention.dense.bias", "D -> D"),
    Tensor("mlp_norm/gain", f"{BLOCK}.post_attention_layernorm.weight", "D -> D"),
    Tensor("mlp_norm/bias", f"{BLOCK}.post_attention_layernorm.bias", "D -> D"),
    Tensor("mlp/up/kernel", f"{BLOCK}.mlp.dense_h_to_4h.weight", "F D -> D F"),
    Tensor("mlp/up/bias", f"{BLOCK}.mlp.dense_h_to_4h.bias", "F -> F"),
    Tensor("mlp/down/kernel", f"{BLOCK}.mlp.dense_4h_to_h.weight", "D F -> F D"),
    Tensor("mlp/down/bias", f"{BLOCK}.mlp.dense_4h_to_h.bias", "D -> D"),
    Tensor("norm/gain", "transformer.ln_f.weight", "D -> D"),
    Tensor("norm/bias", "transformer.ln_f.bias", "D -> D"),
)  # fmt: skip

FAMILY = Family(
    model_type="bloom",
    architecture="BloomForCausalLM",
    node=Bloom,
    fields=(
        Field("vocab_size", "vocab", 250880),
        Field("hidden_size", "d_model", 64, also=("n_embed",)),
        Field("n_layer", "layers", 2, also=("num_hidden_layers",)),
        Field("n_head", "heads", 8, also=("num_attention_heads",)),
        Implied("head_dim", lambda f: f["d_model"] // f["heads"]),
        Implied("d_ff", lambda f: 4 * f["d_model"]),
        Rates((
            Field("embedding_dropout", "embedding", 0.0),  # which the class ignores
            Field("hidden_dropout", "residual", 0.0),
            Field("attention_dropout", "attention", 0.0),
        )),
        Fixed("layer_norm_epsilon", 1e-5),
        Fixed("apply_residual_connection_post_layernorm", False),
        Fixed("tie_word_embeddings", True),
    ),
    tensors=lambda node: TENSORS,
    prefix="transformer.",
    irrelevant=(
        "attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "n_inner",
        "offset_alibi", "pretraining_tp", "seq_length", "skip_bias_add", "skip_bias_add_qkv",
        "slow_but_exact", "unk_token_id",
    ),
    tied=lambda node: {"lm_head.weight": "transformer.word_embeddings.weight"},
    context="seq_length",
)  # fmt: skip
