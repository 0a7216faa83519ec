"""Gemma against `transformers`."""

from pathlib import Path

import pytest

from hf_parity import parity
from pretrain.config import Mistake
from pretrain.interop.gemma import FAMILY

pytestmark = pytest.mark.hf
TINY = {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 20, "head_dim": 16}


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 1), (4, 2)])
def test_gemma_is_that_of_transformers_and_comes_back(
    heads: int, kv_heads: int, tmp_path: Path
) -> None:
    respelt = ("hidden_activation", "use_bidirectional_attention", "rope_theta")
    config = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, **TINY}
    parity("gemma", tmp_path, respelt=respelt, **config)


def test_the_first_configs_said_gelu_and_meant_its_tanh_form() -> None:
    assert FAMILY.read({"hidden_act": "gelu"}) == FAMILY.read({"hidden_act": "gelu_pytorch_tanh"})
    with pytest.raises(Mistake, match="hidden_act is 'relu', which must be 'gelu_pytorch_tanh'"):
        FAMILY.read({"hidden_act": "relu"})
