"""MPT against `transformers`."""

from pathlib import Path
from typing import Any

import pytest

from hf_parity import libraries, parity
from pretrain.config import Mistake
from pretrain.interop.mpt import FAMILY
from pretrain.kernels.mask import Alibi

pytestmark = pytest.mark.hf
TINY: dict[str, Any] = {"d_model": 24, "n_layers": 2, "max_seq_len": 16}


@pytest.mark.parametrize("heads", [4, 6])
def test_mpt_is_that_of_transformers_and_comes_back(heads: int, tmp_path: Path) -> None:
    respelt = ("attn_config",)  # loading a model gives this config within its config a dtype
    parity("mpt", tmp_path, respelt=respelt, n_heads=heads, **TINY)


@pytest.mark.parametrize("most", [8, 5])
@pytest.mark.parametrize("heads", [1, 2, 3, 5, 7, 8, 12, 64])
def test_slopes_are_those_of_transformers(heads: int, most: int) -> None:
    """To 1e-6. Bias of the position before the last: minus the slope."""
    _, transformers = libraries()
    of = transformers.models.mpt.modeling_mpt.build_mpt_alibi_tensor
    want = (-of(heads, 2, most)[:, 0, 0]).tolist()
    assert Alibi.of(heads, most).slopes == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(
    ("attention", "sentence"),
    [
        ({"alibi_bias_max": 4}, "attn_config.alibi_bias_max is 4, which must be 8 here"),
        ({"clip_qkv": 6}, "attn_config.clip_qkv is 6, which must be None here"),
        ({"qk_ln": True}, "attn_config.qk_ln is True, which must be False here"),
        ({"rope": True}, "attn_config.rope is True, a field that is not known here"),
    ],
)
def test_an_attention_that_is_not_implemented_is_refused(
    attention: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Mistake, match=sentence):
        FAMILY.read({"attn_config": attention})
