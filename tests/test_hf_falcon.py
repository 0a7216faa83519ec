"""Falcon against `transformers`."""

from pathlib import Path
from typing import Any

import pytest

from hf_parity import parity
from pretrain.config import Mistake
from pretrain.interop.falcon import FAMILY

pytestmark = pytest.mark.hf
TINY: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}


@pytest.mark.parametrize(
    "config",
    [{}, NEW, {**NEW, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 40}],
    ids=["7B", "40B", "11B"],
)
def test_falcon_is_that_of_transformers_and_comes_back(
    config: dict[str, Any], tmp_path: Path
) -> None:
    parity("falcon", tmp_path, **TINY, **config)


@pytest.mark.parametrize("key, value", [("alibi", True), ("bias", True), ("parallel_attn", False)])
def test_the_decoder_of_falcon_rw_is_refused(key: str, value: bool) -> None:
    with pytest.raises(Mistake, match=f"{key} is {value}, which must be {not value} here"):
        FAMILY.read({key: value})
