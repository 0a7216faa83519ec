"""RWKV-4 at Hugging Face: `RwkvForCausalLM`."""

from pretrain.interop.family import Family
from pretrain.interop.fields import Field, Fixed, Repeated
from pretrain.interop.mapping import Tensor
from pretrain.models.rwkv import RWKV

BLOCK = "rwkv.blocks.{l}"
TENSORS = (
    Tensor("embedding/table", "rwkv.embeddings.weight", "V D -> V D"),
    Tensor("embedding_norm/gain", "rwkv.blocks.0.pre_ln.weight", "D -> D"),
    Tensor("embedding_norm/bias", "rwkv.blocks.0.pre_ln.bias", "D -> D"),
    Tensor("time_norm/gain", f"{BLOCK}.ln1.weight", "D -> D"),
    Tensor("time_norm/bias", f"{BLOCK}.ln1.bias", "D -> D"),
    Tensor("time/decay", f"{BLOCK}.attention.time_decay", "A -> A"),
    Tensor("time/bonus", f"{BLOCK}.attention.time_first", "A -> A"),
    *(
        Tensor(f"time/{use}_share", f"{BLOCK}.attention.time_mix_{use}", "1 1 D -> D")
        for use in ("key", "value", "receptance")
    ),
    *(
        Tensor(f"time/{name}/kernel", f"{BLOCK}.attention.{name}.weight", "A D -> D A")
        for name in ("key", "value", "receptance")
    ),
    Tensor("time/out/kernel", f"{BLOCK}.attention.output.weight", "D A -> A D"),
    Tensor("channel_norm/gain", f"{BLOCK}.ln2.weight", "D -> D"),
    Tensor("channel_norm/bias", f"{BLOCK}.ln2.bias", "D -> D"),
    *(
        Tensor(f"channel/{use}_share", f"{BLOCK}.feed_forward.time_mix_{use}", "1 1 D -> D")
        for use in ("key", "receptance")
    ),
    Tensor("channel/key/kernel", f"{BLOCK}.feed_forward.key.weight", "F D -> D F"),
    Tensor("channel/receptance/kernel", f"{BLOCK}.feed_forward.receptance.weight", "A D -> D A"),
    Tensor("channel/value/kernel", f"{BLOCK}.feed_forward.value.weight", "D F -> F D"),
    Tensor("norm/gain", "rwkv.ln_out.weight", "D -> D"),
    Tensor("norm/bias", "rwkv.ln_out.bias", "D -> D"),
    Tensor("unembedding/kernel", "head.weight", "V D -> D V"),
)

FAMILY = Family(
    model_type="rwkv",
    architecture="RwkvForCausalLM",
    node=RWKV,
    fields=(
        Field("vocab_size", "vocab", 50277),
        Field("hidden_size", "d_model", 4096),
        Field("num_hidden_layers", "layers", 32),
        Field("intermediate_size", "d_ff", lambda f: 4 * f["d_model"]),
        Repeated("attention_hidden_size", "d_model"),
        Fixed("layer_norm_epsilon", 1e-5),
        Fixed("tie_word_embeddings", False),
    ),
    tensors=lambda node: TENSORS,
    prefix="rwkv.",
    # Rescaling halves weights and states alike, against overflow in fp16.
    irrelevant=("context_length", "rescale_every"),
    context="context_length",
)
