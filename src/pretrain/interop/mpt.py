"""MPT at Hugging Face: `MptForCausalLM`, whose fused rows are all queries, all keys, all values."""

from pretrain.interop.family import IRRELEVANT, PLAIN, Family
from pretrain.interop.fields import Choice, Field, Fixed, Implied, Nested
from pretrain.interop.mapping import Part, Tensor
from pretrain.models.mpt import MPT

BLOCK = "transformer.blocks.{l}"
TENSORS = (
    Tensor("embedding/table", "transformer.wte.weight", "V D -> V D"),
    Tensor("attention_norm/gain", f"{BLOCK}.norm_1.weight", "D -> D"),
    *(
        Tensor(
            f"attention/{name}/kernel", f"{BLOCK}.attn.Wqkv.weight",
            "(c N H) D -> D N H", Part(at, of=3),
        )
        for at, name in enumerate(("query", "key", "value"))
    ),
    Tensor("attention/out/kernel", f"{BLOCK}.attn.out_proj.weight", "D (N H) -> N H D"),
    Tensor("mlp_norm/gain", f"{BLOCK}.norm_2.weight", "D -> D"),
    Tensor("mlp/up/kernel", f"{BLOCK}.ffn.up_proj.weight", "F D -> D F"),
    Tensor("mlp/down/kernel", f"{BLOCK}.ffn.down_proj.weight", "D F -> F D"),
    Tensor("norm/gain", "transformer.norm_f.weight", "D -> D"),
)  # fmt: skip

ATTENTION = Nested(
    "attn_config",
    rows=(
        Fixed("alibi", True),
        # transformers computes with 8 whatever this says.
        Choice("alibi_bias_max", "alibi_bias_max", ((8, 8),), default=8),
        Fixed("attn_type", "multihead_attention"),
        Fixed("clip_qkv", None),
        Fixed("prefix_lm", False),
        Fixed("qk_ln", False),
        Fixed("softmax_scale", None),
    ),
    # transformers saves it as a config of its own, with all that any config has.
    irrelevant=(*IRRELEVANT, *dict(PLAIN), "attn_impl", "attn_pdrop", "attn_uses_sequence_id"),
)

FAMILY = Family(
    model_type="mpt",
    architecture="MptForCausalLM",
    node=MPT,
    fields=(
        Field("vocab_size", "vocab", 50368),
        Field("d_model", "d_model", 2048),
        Field("n_layers", "layers", 24),
        Field("n_heads", "heads", 16),
        Implied("head_dim", lambda f: f["d_model"] // f["heads"]),
        Implied("d_ff", lambda f: 4 * f["d_model"]),
        ATTENTION,
        Fixed("expansion_ratio", 4),
        Fixed("layer_norm_epsilon", 1e-5),
        Fixed("logit_scale", None),
        Fixed("no_bias", True),
        Fixed("tie_word_embeddings", True),
    ),
    tensors=lambda node: TENSORS,
    prefix="transformer.",
    irrelevant=(
        "emb_pdrop", "embedding_fraction", "init_config", "init_device", "learned_pos_emb",
        "max_seq_len", "norm_type", "resid_pdrop", "tokenizer_name", "verbose",
    ),
    tied=lambda node: {"lm_head.weight": "transformer.wte.weight"},
    context="max_seq_len",
)  # fmt: skip
