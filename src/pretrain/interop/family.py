"""`Family`: one `model_type` of Hugging Face, and the `Architecture` class that it is here."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.interop import fields
from pretrain.interop.fields import Config, Row
from pretrain.interop.mapping import Tensor
from pretrain.models.model import Architecture

# Keys that any config.json may have and that change no logit: how a model is kept, trained, spoken to.
IRRELEVANT = (
    "_commit_hash", "_name_or_path", "architectures", "attn_implementation", "auto_map", "bad_words_ids",
    "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size",
    "eos_token_id", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_range",
    "keys_to_ignore_at_inference", "label2id", "length_penalty", "max_length", "min_length", "model_type",
    "name_or_path", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels",
    "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_scores", "pad_token_id", "prefix", "problem_type",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate",
    "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version",
    "typical_p", "use_bfloat16", "use_cache",
)  # fmt: skip
# Keys of any config.json that turn a decoder into something else, with the one value that does not.
PLAIN: tuple[tuple[str, Any], ...] = (
    ("add_cross_attention", False),
    ("cross_attention_hidden_size", None),
    ("is_decoder", False),
    ("is_encoder_decoder", False),
    ("pruned_heads", {}),
    ("tie_encoder_decoder", False),
)


@dataclass(frozen=True)
class Family:
    """The tables of one `model_type`, read both ways. docs/interop.md says how to write them."""

    model_type: str  # "gpt2"
    architecture: str  # the class of `transformers`: "GPT2LMHeadModel"
    node: type[Architecture]  # what it is here; a subclass of it is another family
    fields: tuple[Row, ...]  # of config.json
    tensors: Callable[[Any], Sequence[Tensor]]  # of a node of this class
    prefix: str = ""  # of tensors' names; checkpoints of the bare model leave it out
    irrelevant: tuple[str, ...] = ()  # keys of config.json that change no logit
    buffers: tuple[str, ...] = ()  # tensors that are no parameters, as patterns: "h.*.attn.bias"
    # pairs of names, of a tensor that may be there and of the one that it repeats
    tied: Callable[[Any], Mapping[str, str]] = lambda node: {}
    context: str | None = None  # the key among the irrelevant that says how long texts may be

    @property
    def nodes(self) -> tuple[type[Architecture], ...]:
        """The classes that it reads and writes."""
        return (self.node,)

    def read(self, config: Config) -> Architecture:
        """The node that a config.json describes. Raises Mistake with the end of a sentence."""
        plain = tuple(fields.Fixed(key, value) for key, value in PLAIN)
        rows = (*self.fields, *plain)
        return self.node(**fields.read(rows, self.kept_keys, config))

    def write(self, node: Architecture) -> dict[str, Any]:
        """The keys of config.json that say which model it is. Raises Mistake like `read`."""
        written = fields.write(self.fields, node)
        return {"architectures": [self.architecture], "model_type": self.model_type, **written}

    @property
    def kept_keys(self) -> tuple[str, ...]:
        """The keys that say nothing about the model and are written as they were read."""
        return (*IRRELEVANT, *self.irrelevant)

    def local(self, name: str) -> str:
        """A tensor's name without the prefix, which the checkpoint of a bare model leaves out."""
        return name.removeprefix(self.prefix)

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor of theirs is no parameter: masks and frequencies that old versions saved."""
        return any(fnmatch.fnmatch(self.local(name), pattern) for pattern in self.buffers)
