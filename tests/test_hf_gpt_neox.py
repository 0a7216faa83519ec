"""GPT-NeoX against `transformers`."""

from pathlib import Path
from typing import Any

import pytest

from hf_parity import parity
from pretrain.config import Mistake
from pretrain.interop.gpt_neox import FAMILY

pytestmark = pytest.mark.hf
TINY = {"num_hidden_layers": 2, "intermediate_size": 20}


@pytest.mark.parametrize(
    "config",
    [
        {"num_attention_heads": 4, "hidden_size": 32},
        {
            "num_attention_heads": 3, "hidden_size": 48, "hidden_act": "gelu_fast",
            "rotary_pct": 0.5, "rotary_emb_base": 500.0, "layer_norm_eps": 0.1,
        },
    ],
    ids=["a quarter turns", "half turns"],
)  # fmt: skip
def test_gpt_neox_is_that_of_transformers_and_comes_back(
    config: dict[str, Any], tmp_path: Path
) -> None:
    parity("gpt_neox", tmp_path, **TINY, **config)


@pytest.mark.parametrize(
    ("key", "value", "known"),
    [
        ("use_parallel_residual", False, "True"),
        ("attention_bias", False, "True"),
        ("hidden_act", "relu", "'gelu' or 'gelu_fast'"),
    ],
)
def test_another_block_is_refused(key: str, value: Any, known: str) -> None:
    with pytest.raises(Mistake, match=f"{key} is {value!r}, which must be {known}"):
        FAMILY.read({key: value})
